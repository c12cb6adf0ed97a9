// Entry scan: the entries of a btree index in ascending order, dead ones among them, and their
// columns. It does not look at the table unless asked. queue/skip_scan.cpp uses it. The state is
// one scan of this process.
//
// A query reads, and looks up in the table, every entry of rows that are gone until it meets a row
// that is left. While a transaction holds the horizon those are all messages that were handled
// since. Code that knows what it wants of the index passes over them at a fraction of the cost. It
// can skip a long row of entries by a new descent, and stop at any time.
//
// For bodies of guard::call: after an error the transaction cleans up all that the scan owns.
#pragma once

#include <cstdint>

#include "pg/postgres.hpp"

extern "C" {
#include "access/genam.h"
#include "access/relscan.h"
#include "access/skey.h"
#include "executor/tuptable.h"
#include "utils/rel.h"
}

namespace mq {

// Whether a btree index never had an entry since it was made. Costs next to nothing.
bool is_unused(Oid table, Oid index);

class EntryScan {
 public:
  static constexpr int kMostColumns = 3;

  // A position is a value for each of `columns` columns of the index from `first` on, of at least two: the server
  // reads the second key of a row comparison without a look whether there is one. They are compared one after the other
  // by `compare`, functions of the index's operator classes. Columns before `first`, a text and perhaps a smallint,
  // must equal `prefix` and `second`.
  void open(Oid table, Oid index, const RegProcedure* compare, int columns, int first = 1, Datum prefix = 0,
            std::int16_t second = 0);
  // The entries of the text `prefix` whose second column, a smallint in descending order, is at or below
  // the position, the greatest first.
  void open_downwards(Oid table, Oid index, Datum prefix);
  // Goes to the first entry at or above the position (open_downwards(): at or below).
  void descend(const Datum* position);
  bool next();  // false: there is no further entry
  // Whether next() returns entries, too, that some scan has found to be of rows that nobody sees any
  // more. It passes over those, but reads all their pages. Heeded from the next page on.
  void read_gone(bool read) { scan_->ignore_killed_tuples = !read; }
  // A column of the entry, counted from 1.
  Datum column(int n, bool& null) const { return index_getattr(scan_->xs_itup, n, scan_->xs_itupdesc, &null); }
  // Whether the entry's row is visible to the snapshot that open() took.
  bool is_visible() { return read(slot_); }
  // The row that is_visible() has found.
  TupleTableSlot* row() const { return slot_; }
  // As is_visible(), and reads the row into a slot of the caller's.
  bool read(TupleTableSlot* slot) { return index_fetch_heap(scan_, slot); }
  void close();

 private:
  void open_relations(Oid table, Oid index);
  void begin();

  Relation table_;
  Relation index_;
  IndexScanDesc scan_;
  TupleTableSlot* slot_;
  ScanKeyData row_[kMostColumns];
  ScanKeyData keys_[3];
  int columns_;  // of the position that is compared as a row; 0: open_downwards()
  int key_count_;
};

}  // namespace mq
