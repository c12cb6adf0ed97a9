// Plain table: writes rows straight into a table of mq's and its indexes where it has nothing but what
// it was created with: for a few rows the executor costs more than they do. insert.cpp writes messages
// with it; promote.cpp and claimed_rows.cpp new versions of them; settle.cpp and stats/totals.cpp rows
// of other tables. The state is the predicates of indexes, as the executor asks them.
//
// Triggers, rules, policies and checks would not be asked, and columns that somebody has added not be
// filled: where there is any of that, open() says no, and the caller runs a statement.
#pragma once

#include <span>

#include "pg/postgres.hpp"
#include "pg/statement.hpp"

extern "C" {
#include "nodes/execnodes.h"
}

namespace mq {

// A column as mq made it.
struct TableColumn {
  const char* name;
  Oid type;
  bool nullable = false;
};

// The columns of a table as mq made it, and the numbers that they have in it.
struct PlainColumns {
  std::span<const TableColumn> columns;
  const AttrNumber* numbers;
};

// For bodies of guard::call(): after an error the transaction cleans up.
class PlainTable {
 public:
  // False: a statement has to write the rows, and nothing is open. Asked once the table's lock is held,
  // so that no trigger can come, nor a column.
  bool open(Oid table, const PlainColumns& columns);
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

// Writes new rows of a plain table, many at a time, as COPY does. For bodies of guard::call().
class RowInserter {
 public:
  bool open(Oid table, const PlainColumns& columns, int most);  // as PlainTable::open()
  // Takes a row, by the columns. There is room for `most` until write().
  void add(const Datum* values, const bool* nulls);
  void write();
  void close();

 private:
  PlainColumns columns_;
  PlainTable table_;
  TupleTableSlot** slots_;
  int most_;
  int added_;
};

// Inserts rows: `values` has those of the first row by the columns, then those of the next. False: a
// statement has to. Needs an OwnerScope.
bool insert_rows(Oid table, std::span<const TableColumn> columns, std::span<const Param> values);

// Writes new versions of rows of a plain table. For bodies of guard::call().
class RowUpdater {
 public:
  bool open(Oid table, const PlainColumns& columns);  // as PlainTable::open()
  void close();

  Relation relation() const { return table_.relation(); }
  CommandId command() const { return table_.command(); }
  TupleTableSlot* old() const { return old_; }

  // change(Datum* values, bool* nulls) changes columns of the row. `wait`: for other sessions that have
  // locked it. False: it is not there, or another session has it.
  template <class F>
  bool update(const ItemPointerData& location, bool wait, F&& change) {
    if (!copy_old(location) || (kAsserts && !wait && !(wait = lock(location)))) return false;
    change(new_->tts_values, new_->tts_isnull);
    return write_new(location, wait);
  }

 private:
#ifdef USE_ASSERT_CHECKING
  static constexpr bool kAsserts = true;
#else
  static constexpr bool kAsserts = false;
#endif

  bool copy_old(const ItemPointerData& location);
  // heap_update() that must not wait returns TM_BeingModified for a locked row, but asserts that there is none. In a
  // server with assertions the row is locked first, which need not wait. Others save that and its WAL record.
  bool lock(const ItemPointerData& location);
  bool write_new(ItemPointerData location, bool wait);

  PlainTable table_;
  TupleTableSlot* old_;
  TupleTableSlot* new_;
};

}  // namespace mq
