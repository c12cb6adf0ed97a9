// Plain table: writes rows straight into mq_msgs and its indexes where it has nothing but what it was
// created with. insert.cpp writes new rows with it, promote.cpp and retries.cpp new versions of rows. No
// state.
//
// Triggers, rules, policies and checks would not be asked, and columns that somebody has added not be
// filled: where there is any of that, open() says no, and the caller runs a statement.
#pragma once

#include "pg/postgres.hpp"
#include "queue/claimed_rows.hpp"

extern "C" {
#include "nodes/execnodes.h"
}

namespace mq {

// For bodies of guard::call(): after an error the transaction cleans up.
class PlainTable {
 public:
  // False: a statement has to write the rows, and nothing is open. Asked once the table's lock is held,
  // so that no trigger can come, nor a column. `numbers` are those of attribute_numbers().
  bool open(Oid table, const AttrNumber* numbers);
  void close();

  Relation relation() const { return table_; }
  EState* state() const { return state_; }
  CommandId command() const { return command_; }
  TupleTableSlot* create_slot() const;
  // Writes the index entries of the row in the slot; `updated`: of a new version of a row;
  // `summarizing`: only those of indexes that summarize blocks (BRIN).
  void insert_index_entries(TupleTableSlot* slot, bool updated, bool summarizing = false);

 private:
  Relation table_;
  EState* state_;
  ResultRelInfo* info_;
  CommandId command_;
};

// Writes new versions of rows of a plain table. For bodies of guard::call().
class RowUpdater {
 public:
  bool open(Oid table, const AttrNumber* numbers);  // as PlainTable::open()
  void close();

  Relation relation() const { return table_.relation(); }
  CommandId command() const { return table_.command(); }
  TupleTableSlot* old() const { return old_; }

  // change(Datum* values, bool* nulls) changes columns of the row. `wait`: for other sessions that have
  // locked it. False: it is not there, or another session has it.
  template <class F>
  bool update(const ItemPointerData& location, bool wait, F&& change) {
    if (!copy_old(location)) return false;
    change(new_->tts_values, new_->tts_isnull);
    return write_new(location, wait);
  }

 private:
  bool copy_old(const ItemPointerData& location);
  bool write_new(ItemPointerData location, bool wait);

  PlainTable table_;
  TupleTableSlot* old_;
  TupleTableSlot* new_;
};

}  // namespace mq
