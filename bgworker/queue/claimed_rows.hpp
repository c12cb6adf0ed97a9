// Claimed rows: makes messages (Claimed) of rows of mq_msgs. The files that lock messages use it:
// claim.cpp and find.cpp by queries, due_scan.cpp without. retries.cpp and lease.cpp write new versions
// of the rows with it. No state.
#pragma once

#include <functional>
#include <vector>

#include "pg/plain_table.hpp"
#include "pg/postgres.hpp"
#include "pg/statement.hpp"
#include "queue/message.hpp"

extern "C" {
#include "executor/tuptable.h"
#include "utils/rel.h"
}

namespace mq {

// The columns of mq_msgs: those that a claim reads, then the others.
enum ClaimColumn {
  kId,
  kChannelKey,
  kSeq,
  kAttemptAt,
  kRetryBackoff,
  kChannelName,
  kChannelArgs,
  kName,
  kAttempts,
  kAttemptsLeft,
  kAfter,
  kCommitInterval,
  kPayloadJson,
  kPayloadBytes,
  kExpiresAt,
  kCreatedAt,
  kLeaseToken,
  kHeaders,
  kPriority,
  kKeep,
  kThrottledAt,
  kColumns,  // the number of those above
  // The others of the table.
  kDedupKey = kColumns,
  kFair,
  kDueAt,
  kAllColumns
};

// The columns of mq_msgs, by ClaimColumn.
extern const TableColumn kMsgsColumns[kAllColumns];
// The numbers that they have in the table.
const AttrNumber* attribute_numbers(Oid table);
PlainColumns msgs_columns(const AttrNumber* numbers);

// A row as a claim has read it.
struct LockedRow {
  Datum values[kColumns];
  bool nulls[kColumns];
  ItemPointerData location;
  bool locked = true;    // false: only claimed, see shmem/row_claims.hpp
  bool dropped = false;  // due_scan.cpp: not claimed after all
};
std::uint64_t location_of(const ItemPointerData& location);  // block << 16 | offset
std::uint64_t location_of(Datum tid);

// Whether this transaction has written the table anew (TRUNCATE, say): no row is at its old ctid.
bool has_new_file(Oid table);

ItemPointerData item_of(std::uint64_t location);
ItemPointerData item_of(const Claimed& message);  // where the claim found its row

// What has become of the row of a claimed message.
enum class RowState {
  kThere,     // as it was claimed; in the slot
  kOurs,      // the handler, in this transaction, has changed or removed it
  kNotFound,  // neither
};
// For bodies of guard::call(), with the latest snapshot active.
// `numbers` are those of attribute_numbers().
RowState row_state(Relation relation, const AttrNumber* numbers, const Claimed& message, TupleTableSlot* slot);

// The new version of a row of mq_msgs, before it is written.
class NewVersion {
 public:
  NewVersion(Datum* values, bool* nulls, const AttrNumber* numbers)
      : values_(values), nulls_(nulls), numbers_(numbers) {}
  void set(ClaimColumn column, Datum value) {
    values_[numbers_[column] - 1] = value;
    nulls_[numbers_[column] - 1] = false;
  }
  void set_null(ClaimColumn column) { nulls_[numbers_[column] - 1] = true; }
  // To an integer column.
  void add(ClaimColumn column, int number) {
    set(column, Int32GetDatum(DatumGetInt32(values_[numbers_[column] - 1]) + number));
  }

 private:
  Datum* const values_;
  bool* const nulls_;
  const AttrNumber* const numbers_;
};

// Writes new versions of the messages' rows straight into the table, where the claim found them. `change` must
// not throw. Returns for each whether it was written; none is where the table is not as mq made it. A
// row that the claim did not lock is not waited for. Needs an OwnerScope.
std::vector<char> update_claimed(const std::vector<const Claimed*>& messages,
                                 const std::function<void(std::size_t i, NewVersion& version)>& change);

// The columns for a query, in the order of ClaimColumn, and the ctid.
#define CLAIMED_COLUMNS                                                                        \
  "m.id, m.channel_key, m.seq, m.attempt_at, m.retry_backoff, m.channel_name, m.channel_args," \
  " m.message_name, m.attempt, m.attempts, m.after_message_id, m.commit_interval,"             \
  " m.message_json, m.message_bytes, m.expires_at, m.created_at, m.lease,"                     \
  " m.headers, m.priority, m.keep, m.throttled_at, m.ctid"

inline constexpr int kFurther = kColumns + 2;  // the first column of Rows behind CLAIMED_COLUMNS

// Adds the row's message, whose texts and payload are where the row has them.
Claimed& append(const LockedRow& row, Batch& batch);
// The rows are of a query for CLAIMED_COLUMNS. Their texts live as long as the SPI connection.
void append(const Rows& rows, Batch& batch);
// Makes the message what it was before the lease charged its attempt; the row keeps the charge.
void before_lease(Claimed& message, std::int64_t token);

}  // namespace mq
