// Activity: what each worker does at the moment, written by the worker and read by the views.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/types.hpp"

namespace mq::shared {

// The notes of this worker's activity, for mq_workers. Called for each message, so these are cheap.
enum class Doing { kBetween, kCall, kSettling, kCommitting };
void note_call(std::string_view channel_name, const Uuid& message);
void note_returned();
void note_settling(TimestampTz now);  // it settles the batch's messages
void note_committing();               // it commits, and the server runs deferred triggers
void note_idle();
void note_handled(std::uint64_t messages);
TimestampTz call_began();  // the last call
// This worker's batch takes long: until note_idle() other workers of its pool should be there for
// what else is due. A signal handler may call it.
void note_busy_long();
struct NamedMessages {
  std::string_view channel_name;
  int messages;
};
// The messages that this worker holds until note_idle().
void note_batch(const std::vector<NamedMessages>& messages);

// For the views. Any session may call them.
struct WorkerState {
  int pid;
  Oid database;
  Oid role;
  bool waiting;
  bool has_database_slot;
  Doing doing;
  std::string channel_name;
  Uuid message;
  TimestampTz since;
  std::uint64_t handled;
};
std::vector<WorkerState> workers();
struct DrainingWorker {
  int pid;
  Oid database;
  Oid role;
  int calls;          // leased calls of it that run
  TimestampTz since;  // when the first of them began
};
std::vector<DrainingWorker> draining_workers();  // of all databases
// How many messages workers hold in their batches in this database, by channel_key() of the channel
// name and no arguments.
std::map<std::int64_t, std::int64_t> held_by_workers();

}  // namespace mq::shared
