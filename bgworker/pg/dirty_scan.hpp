// Dirty scan: rows by an index whose columns are uuids, as the table is at this moment: also rows that
// transactions in progress are inserting, and rows that they are deleting. So a transaction learns of
// what another one does without a wait for it. queue/prerequisite_rows.cpp uses it. The state is one
// scan of this process.
//
// For bodies of guard::call: after an error the transaction cleans up all that the scan owns.
#pragma once

#include "pg/postgres.hpp"

extern "C" {
#include "access/genam.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "executor/tuptable.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"
}

namespace mq {

class DirtyScan {
 public:
  enum class Second { kAny, kEqual, kAbove, kUpTo };

  DirtyScan() = default;
  DirtyScan(const DirtyScan&) = delete;  // the scan points at the snapshot
  DirtyScan& operator=(const DirtyScan&) = delete;

  void open(Oid table, Oid index);
  // Goes to the rows with `first` in the first column of the index, and `second`, where that is wanted,
  // in its second. The values must live until the next find().
  void find(const pg_uuid_t* first, Second how = Second::kAny, const pg_uuid_t* second = nullptr);
  bool next();  // false: there is no further row
  // Whether another transaction in progress is inserting the row that next() has read, or is deleting
  // or changing it. Rows that are only locked are not disturbed.
  bool disturbed() const { return TransactionIdIsValid(dirty_.xmin) || TransactionIdIsValid(dirty_.xmax); }
  // A column of the table, by its number.
  Datum column(AttrNumber n, bool& null) const { return slot_getattr(slot_, n, &null); }
  ItemPointerData location() const { return slot_->tts_tid; }
  void close();

 private:
  Relation table_ = nullptr;
  Relation index_ = nullptr;
  TupleTableSlot* slot_ = nullptr;
  IndexScanDesc scan_ = nullptr;
  SnapshotData dirty_;
  ScanKeyData keys_[2];
  int key_count_ = 0;
};

}  // namespace mq
