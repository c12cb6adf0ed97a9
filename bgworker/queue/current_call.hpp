// The current call: the call of a transactional handler that runs in this process.
//
// handlers/call.cpp makes it and reads it after the call. SQL functions that the handler calls, and
// the hooks in mq.c, note in it what the handler asks for and changes. Only this process sees it. A
// leased handler has none: it runs in a session of its own.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pg/error.hpp"
#include "pg/row_locks.hpp"
#include "pg/subtransactions.hpp"
#include "queue/disposition.hpp"
#include "queue/message.hpp"

namespace mq {

// The messages that a call has changed or removed, other than by its outcome.
struct Changes {
  std::vector<Uuid> ids;
  std::vector<std::string> channel_names;  // all messages of the name, or its handlers
  bool any = false;                        // any message may be changed
};

// Lives from the call's beginning to its end, also when that is an error. There is one at a time:
// mq_run refuses to run in a handler.
struct CurrentCall {
  CurrentCall(std::span<const Claimed* const> called_with, bool shares);
  ~CurrentCall();
  CurrentCall(const CurrentCall&) = delete;
  CurrentCall& operator=(const CurrentCall&) = delete;
  static const CurrentCall* here();  // nullptr: there is none

  const std::span<const Claimed* const> messages;
  const bool is_shared;  // other calls may run in the same transaction
  bool felt = false;     // the handler asked for something that would affect those calls
  BySubtransaction<Disposition> dispositions;
  Changes changes;
  const row_locks::InHandler in_handler;
};

// Throws 55000 if there is a current call: its messages are locked by its own transaction, so a
// claim would take them again.
void refuse_in_handler(const char* function);

// Whether the current call was given the message with this id and sequence number.
bool is_of_the_call(const Uuid& id, std::int64_t seq);
bool is_of_the_call(const Uuid& id);

// Whether a transactional handler runs in this process.
bool in_call();

// Notes the disposition of the message disposition.id, or (`any`) of all messages of the current
// call. False: there is no current call. Throws 22023 if the call was not given the message.
bool note_disposition(const Disposition& disposition, bool any);

// These note what the current call, if any, changes or removes: these messages; messages or
// handlers of the channel name; any message. A note outlives a rollback: that costs only a claim.
void note_changed(std::span<const Uuid> messages);
void note_changed(std::string_view channel_name);
void note_any_changed();

const char* name_of(Disposition::Kind kind);
// 22023: the handler was not called with the message.
Error not_of_the_call(Disposition::Kind kind);

}  // namespace mq
