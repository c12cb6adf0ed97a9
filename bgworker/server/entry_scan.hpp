// Entry scan: the entries of an index in ascending order, dead ones among them, and their columns, without a look
// at the table unless asked.
//
// A query reads, and looks up in the table, every entry of what is gone until it meets something that is left; while
// some transaction holds the horizon that is all that was handled since. Who knows what he wants of the index can
// pass over that at a fraction of the cost, skip a long row of entries by a new descent, and stop at any time.
//
// For bodies of fence::call: owns nothing that an error would not clean up with the transaction.
#pragma once

#include "postgres.hpp"

extern "C" {
#include "access/genam.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "executor/tuptable.h"
#include "utils/rel.h"
}

namespace mq {

class EntryScan {
 public:
  static constexpr int kMostColumns = 3;

  // Entries are found by their position: the columns of the index from `first` on, compared one after the other
  // by these functions of its operator classes. Columns before that, one at most, are text, and must be `prefix`.
  void open(Oid table, Oid index, const RegProcedure* compare, int columns, int first = 1, Datum prefix = 0);
  // On from the first entry at or above the position.
  void descend(const Datum* position);
  bool next();
  // Of the entry; columns are counted from 1.
  Datum column(int n, bool& null) const { return index_getattr(scan_->xs_itup, n, scan_->xs_itupdesc, &null); }
  // Whether its row is there for a transaction that begins now (that began when the scan was opened).
  bool is_visible() { return index_fetch_heap(scan_, slot_); }
  void close();

 private:
  Relation table_;
  Relation index_;
  IndexScanDesc scan_;
  TupleTableSlot* slot_;
  ScanKeyData row_[kMostColumns];
  ScanKeyData keys_[2];
  int columns_;
  int key_count_;
};

}  // namespace mq
