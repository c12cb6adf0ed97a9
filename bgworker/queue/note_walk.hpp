// Note walks: how claims go through a table of notes (mq_headless, mq_rechecks), some of them in each step.
//
// No note is locked before it is removed: such a lock would last as long as the transaction, which may be
// a consumer's that stays open for hours, and would hide the note from everybody else. Two transactions may
// be at one note, so what is done about it has to allow that.
//
// A note is told by where it is (ctid) and by who wrote it (xmin): another one may be in its place by the
// time it is removed.
#pragma once

#include <cstdint>
#include <functional>

#include "pg/statement.hpp"

extern "C" {
#include "storage/itemptr.h"
}

namespace mq {

// The conditions of the two statements of a walk.
#define NOTES_BEHIND "n.ctid > $1 LIMIT $2"
#define NOTES_OF(table)                                                                    \
  "n.ctid = ANY (ARRAY(SELECT l.ctid FROM " table                                          \
  " l WHERE l.ctid = ANY ($1) AND EXISTS (SELECT FROM unnest($1, $2) AS w (place, writer)" \
  "   WHERE w.place = l.ctid AND w.writer = l.xmin) FOR UPDATE SKIP LOCKED))"

class NoteWalk {
 public:
  explicit NoteWalk(std::int64_t most) : most_(most) { start_again(); }

  // The notes of the next step, at most so many. `select` has the parameters (tid, bigint), and ctid and
  // xmin as its first columns.
  Rows step(Statement& select);
  // Whether the step that returned these notes may have left some.
  bool left_some(const Rows& notes) const { return static_cast<std::int64_t>(notes.size()) == most_; }
  // Removes those notes of a step of which is_done(number) says so. `remove` has the parameters
  // (tid[], xid[]).
  static void forget(Statement& remove, const Rows& notes, const std::function<bool(std::size_t)>& is_done);

 private:
  void start_again() { ItemPointerSet(&from_, 0, 0); }

  const std::int64_t most_;
  ItemPointerData from_;  // where the last step ended: notes that stay must not shut out others
};

}  // namespace mq
