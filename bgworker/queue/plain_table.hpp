// Plain table: writes rows straight into mq_msgs and its indexes where it has nothing but what it was
// created with. insert.cpp writes new rows with it, promote.cpp new versions of rows. No state.
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
  // Writes the index entries of the row in the slot; `updated`: of a new version of a row.
  void insert_index_entries(TupleTableSlot* slot, bool updated);

 private:
  Relation table_;
  EState* state_;
  ResultRelInfo* info_;
  CommandId command_;
};

}  // namespace mq
