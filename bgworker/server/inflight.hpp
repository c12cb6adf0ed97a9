// In-flight marks: which message each worker's handler runs with, in a small file that is mapped into memory. It costs
// no WAL and no system call, and it survives what the server does not. The next start reads it.
//
// The file is in pg_stat_tmp, which base backups leave out: a copy of the server has no calls that never ended.
#pragma once

#include <cstdint>
#include <vector>

#include "../message.hpp"
#include "postgres.hpp"

namespace mq::inflight {

struct Mark {
  Oid database;           // InvalidOid: nothing runs
  std::int32_t messages;  // of the call; of a leased one, the calls that ran together
  Uuid message;
  std::int64_t token = 0;  // of a leased call
  Oid role = InvalidOid;   // that runs it
};

// For a worker: maps the file of `marks` marks, the first ones by seat, those behind `leased` by the numbers of leased
// calls. Without the file (disk full, say) marks are not kept.
void open(int seat, int leased, int marks);
// A handler is called with these messages; it has come back.
void set(const Uuid& message, std::size_t messages);
void clear();
void set_leased(int number, const Mark& mark);
void clear_leased(int number);
// The mark of this worker.
Mark current();

// For the start of the server: what was left, and an empty file.
std::vector<Mark> take_all(int marks);

}  // namespace mq::inflight
