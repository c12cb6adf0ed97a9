// In-flight records: which message each call of a handler was given, and how the process that ran it ended, in a small
// file that is mapped into memory. It costs no WAL and no system call, and it survives what the server does not. The
// next start reads it.
//
//   who writes    the worker writes the record of its transactional call, and those of its leased calls; the session of
//                 a leased call notes that the call runs; both note, from signal handlers, how they end
//   kEntered      the call has not begun, as far as anybody knows
//   kRunning      the call runs. A process that is killed by SIGKILL leaves this behind
//   kTold         the process was told to go: by SIGQUIT, by the postmaster's SIGTERM, by a signal that somebody sent
//   kSignal + n   the process brought signal n upon itself
//
// A state is left once only: kRunning becomes one of the last two, and what came first stands.
//
// The file is in pg_stat_tmp, which base backups leave out: a copy of the server has no calls that never ended.
#pragma once

#include <cstdint>
#include <vector>

#include "../message.hpp"
#include "postgres.hpp"

namespace mq::inflight {

inline constexpr std::int32_t kEntered = 0;
inline constexpr std::int32_t kRunning = 1;
inline constexpr std::int32_t kTold = 2;
inline constexpr std::int32_t kSignal = 1000;

struct Mark {
  Oid database;           // InvalidOid: nothing runs
  std::int32_t messages;  // of the call; of a leased one, the calls that ran together
  Uuid message;
  std::int64_t token = 0;  // of a leased call
  Oid role = InvalidOid;   // that runs it
  std::int32_t end = kEntered;
};

// For a worker: maps the file of `marks` marks, the first ones by seat, those behind `leased` by the numbers of leased
// calls. Without the file (disk full, say) marks are not kept. Catches the signals that end the process.
void open(int seat, int leased, int marks);
// A handler is called with these messages; it has come back.
void set(const Uuid& message, std::size_t messages, Oid role);
void clear();
void set_leased(int number, const Mark& mark);
void clear_leased(int number);
// Whether the session of a leased call was told to go.
bool was_told(int number);
Mark leased(int number);
// The mark of this worker.
Mark current();

// For a session that runs leased calls: maps the file; the call of that number and token runs in it now. For a parallel
// worker of a call: the mark at `index` is its leader's, and it notes its own crash alone.
bool open_session(int leased, int marks);
void begin(int number, std::int64_t token);
void open_parallel(int index, int marks);

// For the start of the server: what was left, and an empty file.
std::vector<Mark> take_all(int marks);

}  // namespace mq::inflight
