// Progress: what the handler that runs has said with mq_progress of how far it is. It is in shared
// memory alone, with the call: of a worker, of a session in CALL mq_run, or of a leased call. It shows at
// once, writes no WAL, and ends with the call. The lock covers it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/types.hpp"
#include "shmem/callers.hpp"

namespace mq::shared {

struct Progress {
  std::optional<float> fraction;    // from 0 to 1
  std::optional<std::string> note;  // at most kNoteBytes, in the encoding of the call's database
};

// Notes it for the call that this process runs, or for the leased call with the token (0: none). What is
// none stays as it was. Does nothing where the call has no entry in shared memory.
void note_progress(const std::optional<float>& fraction, const std::optional<std::string_view>& note,
                   std::int64_t token);

// What the call that handles the message has said. Of a call with several messages it is found by the
// first of them, and of a leased one also by its lease (mq_msgs.lease; 0: none). None: it has said nothing, or
// nothing handles the message.
std::optional<Progress> progress_of(Oid database, const Uuid& message, std::int64_t lease = 0);

// A call that has said something.
struct TellingCall {
  enum Kind { kWorker, kLeased, kRun } kind;
  int pid;
  Oid database;
  Oid role;
  Uuid message;
  std::string channel_name;  // empty: of a worker
  TimestampTz since;         // 0: of a worker
  Progress progress;
};
std::vector<TellingCall> telling_calls();  // of all databases

}  // namespace mq::shared
