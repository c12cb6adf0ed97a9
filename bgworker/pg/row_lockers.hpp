// Row lockers: which open transactions have locked or changed a row. Its header says so; pg_locks does
// not. mq_health() and mq_cancel ask. No state: a share lock on the buffer covers the header while it is
// read.
#pragma once

#include "pg/postgres.hpp"

namespace mq {

inline constexpr int kMostLockers = 16;  // of a row, at most

struct Locker {
  int pid;                    // 0: the transaction is prepared, or has just ended
  TransactionId transaction;  // the top-level one
  TransactionId locked_in;    // it or the subtransaction that has the lock: a rollback to a savepoint ends that
};

struct Lockers {
  Locker lockers[kMostLockers];
  int count;
};

// Of the row at `location` (a ctid).
Lockers lockers_of(Oid table, Datum location);

}  // namespace mq
