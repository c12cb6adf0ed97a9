// Status: in which state messages are, by their ids; for mq_status, mq_wait and mq_call. No state.
//
// Nothing here locks a row or waits for one. All of it needs an OwnerScope and an SPI connection, and looks
// with a fresh snapshot. What it returns lives until that connection is closed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pg/statement.hpp"

namespace mq {

enum class MessageState {
  kWaiting,      // until others have been handled (`after`)
  kScheduled,    // due later, and no attempt was made
  kReady,        // due, or behind the head of its ordered channel, or without a handler
  kRunning,      // a handler or a consumer outside has it
  kRetrying,     // due later, after an attempt
  kUncommitted,  // two-phase, without its mq_commit
  kDone,         // handled, and kept in mq_done
  kDead,
  kCancelled,  // by mq_cancel: in mq_dead, or about to be moved there
  kUnknown,    // kept nowhere, or never sent
};
const char* name_of(MessageState state);

inline bool has_ended(MessageState state) {
  return state >= MessageState::kDone;
}

struct MessageStatus {
  Uuid id;
  MessageState state = MessageState::kUnknown;
  // Attempts that were begun, and those that are left after them. Of a message that has ended none are left.
  std::optional<std::int32_t> attempt, attempts_left;
  Param due_at;                     // timestamptz
  std::optional<float> fraction;    // of its call that runs, as mq_progress has it
  std::optional<std::string> note;  // likewise
  Param result;                     // jsonb, detoasted; of kDone
  // The error of its death, or else of its last attempt that failed. texts.
  Param error, sqlstate, detail, hint;
  const char* reason = nullptr;  // of its death, as in mq_dead; nullptr: it is not dead
};

// For each id its state, in the order given; a NULL Datum is not allowed.
std::vector<MessageStatus> statuses_of(std::span<const Uuid> ids);

// Whether each of the messages is pending: it has not ended. Cheaper than statuses_of(). Throws 55000 for a
// message that this transaction has sent or changed, or whose handler asks: it would be pending for as long
// as the transaction, or the call, waits.
std::vector<char> are_pending(std::span<const Uuid> ids);

}  // namespace mq
