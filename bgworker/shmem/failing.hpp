// Failing parts, for mq_health(): the last error of each part of a worker's loop, of each pool whose
// workers end with an error, and of the launcher, where no handler is at fault. Workers and the
// launcher write an entry when a part fails, and once when it works again. Beside it the messages
// that could not be settled. State::lock covers the tables `failures` and `unsettled`.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/types.hpp"
#include "shmem/part.hpp"

namespace mq::shared {

// The last messages that could not be settled, for mq_health(). They are put off until `until`.
void note_unsettled(const Uuid& message, std::string_view channel_name, std::string_view error, Micros until);
struct UnsettledMessage {
  Uuid message;
  std::string channel_name;
  std::string error;
  TimestampTz until;
  int times;
};
std::vector<UnsettledMessage> unsettled();  // of this database; some may have been settled since
// A failure that is no handler's fault, for mq_health(): of parts of a worker's loop, a pool whose
// workers end (kProcess), or the launcher. A worker's entry goes when its part works again, or the
// worker has left.
void note_fails(Part part, std::string_view sqlstate, std::string_view text);
void note_works(Part part);
struct Failing {
  int pid;  // 0: of a pool, or of the launcher
  Oid role;
  Part part;
  TimestampTz since;
  TimestampTz last;
  int times;
  std::string sqlstate;
  std::string text;
};
std::vector<Failing> failing();  // in this database, and of the launcher
struct Refusal {
  Oid role;
  std::string text;
};
std::vector<Refusal> refusals();  // of this database's pools; see note_connection()

}  // namespace mq::shared
