// Row claims: which rows of mq_msgs the batches of workers handle without having locked them. A lock
// would be a WAL record for each row, and so is its removal. due_scan.cpp and find.cpp ask and claim;
// claims end with the transaction.
//
// A row claim is a hint: it spares two sessions from handling one message at the same time. What
// makes sure that only one of them commits is the removal of the row (queue/removal.hpp).
//
// A table of fixed size; a lightweight lock of its own covers it, but for seems_claimed_by_other(). The
// counts of released claims are atomics.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pg/postgres.hpp"

extern "C" {
#include "storage/lock.h"
}

namespace mq::shared {

enum class RowClaim : std::uint8_t {
  kMine,    // this process has claimed the row
  kOther,   // another worker has
  kNoRoom,  // nobody has, and there is no room to note it: the row is to be locked
};

// How many times a worker of this database has released its claims. Read before a snapshot is taken:
// if claim_rows() returns the same, no worker has removed a row since that the snapshot shows.
std::uint64_t row_claims_released();

// Claims rows (ctids in mq_msgs of this database: block << 16 | offset) for this worker until its transaction
// ends. Writes to `results` how each went. For bodies of guard::call().
std::uint64_t claim_rows(std::span<const std::uint64_t> rows, RowClaim* results);

// Whether another worker has claimed any row, in any database.
bool others_claim();
// Whether another worker has claimed the row, or had a moment ago. Takes no lock, so that scans can ask
// for each row. Only claim_rows() says for sure; a worker that gives a claim up looks for work itself.
bool seems_claimed_by_other(std::uint64_t row);
// The transaction of another worker that has claimed the row, or an invalid one.
VirtualTransactionId claimed_by_other(std::uint64_t row);
inline bool is_claimed_by_other(std::uint64_t row) {
  return VirtualTransactionIdIsValid(claimed_by_other(row));
}

struct ClaimOfOther {
  std::uint64_t row;
  VirtualTransactionId holder;
};
// The rows of this database that other workers have claimed.
std::vector<ClaimOfOther> claims_of_others();

}  // namespace mq::shared
