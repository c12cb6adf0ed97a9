#include "queue/removal.hpp"

#include <algorithm>
#include <iterator>
#include <set>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/refused_rows.hpp"
#include "pg/row_locks.hpp"
#include "queue/claimed_rows.hpp"
#include "queue/commit_actions.hpp"
#include "queue/done.hpp"
#include "queue/head_links.hpp"
#include "queue/prerequisites.hpp"
#include "queue/running.hpp"
#include "queue/undeliverable.hpp"
#include "stats/totals.hpp"

extern "C" {
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "utils/snapmgr.h"
}

namespace mq {

std::size_t count_there(const ClaimedRows& rows) {
  static Statement count("SELECT 1 FROM unnest($1, $2, $3) AS r (id, seq, key) JOIN $S.mq_msgs m ON " IS_CLAIMED,
                         {UUIDARRAYOID, INT8ARRAYOID, INT8ARRAYOID});
  return count.run({rows.ids.datum(), rows.numbers.datum(), rows.keys.datum()}).size();
}

namespace {

// Gives each channel that lost its head another. `removed` has the first five columns of REMOVED. A
// statement of its own: the DELETE may have waited for the commit of an append, and this sees that.
void link_behind(const Rows& removed) {
  std::vector<HeadlessChannel> channels;
  for (std::size_t i = 0; i < removed.size(); ++i) {
    bool null = false;
    if (!DatumGetBool(removed.get(i, 5, null)) || null) continue;
    channels.push_back({DatumGetInt64(removed.get(i, 1)), std::string(text_view(removed.get(i, 2))),
                        std::string(text_view(removed.get(i, 3))), DatumGetInt64(removed.get(i, 4))});
  }
  link_or_note(channels);
}

void count_removed(const Rows& removed) {
  commit_actions::RowChanges changes(Extension::msgs());
  for (std::size_t i = 0; i < removed.size(); ++i) {
    changes.add(text_view(removed.get(i, 2)), -1);
    if (DatumGetBool(removed.get(i, 6)))
      running::ended(text_view(removed.get(i, 2)), text_view(removed.get(i, 3)), DatumGetInt64(removed.get(i, 1)));
  }
}

// Counts the leased ones of the removed messages as handled, by the consumer that deleted them.
void count_consumed(const Rows& removed) {
  stats::ByChannel totals;
  for (std::size_t i = 0; i < removed.size(); ++i)
    if (DatumGetBool(removed.get(i, 6))) ++totals[std::string(text_view(removed.get(i, 2)))].handled;
  stats::append(totals);
}

#define REMOVED                                                      \
  " RETURNING m.channel_key, m.channel_name, m.channel_args, m.seq," \
  "   m.after_message_id = $N, m.lease IS NOT NULL, m.id, m.attempt_at IS NULL"

// The messages were handled, deleted or cleared; those that blocked their channels had died before. `column` has
// their ids, or NULL, and the next one whether they blocked.
void ended(const Rows& removed, int column) {
  if (removed.empty()) return;
  const bool waited_for = prerequisites::any();
  if (!commit_actions::wants_ended() && !waited_for) return;
  std::vector<Uuid> handled, dead;
  for (std::size_t i = 0; i < removed.size(); ++i)
    if (!removed.is_null(i, column))
      (DatumGetBool(removed.get(i, column + 1)) ? dead : handled).push_back(uuid_of(removed.get(i, column)));
  commit_actions::ended(handled);
  commit_actions::ended(dead);
  if (!waited_for) return;
  prerequisites::ended(dead, prerequisites::End::kDead, true);
  prerequisites::ended(handled, prerequisites::End::kHandled, true);
}

// Removes messages by id and sequence number. Their handlers have removed those that are gone.
Rows remove_rows(const ClaimedRows& rows) {
  static Statement messages(
      "DELETE FROM $S.mq_msgs m USING unnest($1, $2, $3) AS r (id, seq, key)"
      " WHERE " IS_CLAIMED REMOVED,
      {UUIDARRAYOID, INT8ARRAYOID, INT8ARRAYOID});
  return row_locks::Removal::run([&] {
    const Rows removed = messages.run({rows.ids.datum(), rows.numbers.datum(), rows.keys.datum()});
    if (removed.size() < rows.size && may_refuse(Extension::msgs()) && count_there(rows) > 0)
      throw refused("mq_msgs", "being removed");
    return removed;
  });
}

// Which messages remove_rows() removes, of those with the ids.
enum class Which {
  kAny,
  kBlocking,  // those that block their channels
  kConsumed,  // any; the rows have KEPT_IF_CONSUMED at their end
};

Rows remove_rows(const std::vector<Uuid>& ids, Which which) {
#define NAMED "DELETE FROM $S.mq_msgs m WHERE m.id = ANY ($1)"
  static Statement any(NAMED REMOVED, {UUIDARRAYOID});
  static Statement blocked(NAMED " AND m.attempt_at IS NULL" REMOVED, {UUIDARRAYOID});
  static Statement consumed(NAMED REMOVED ", " KEPT_IF_CONSUMED, {UUIDARRAYOID});
  static Statement left("SELECT 1 FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND (m.attempt_at IS NULL OR NOT $2)",
                        {UUIDARRAYOID, BOOLOID});
  const Datum array = uuid_array(ids);
  const bool blocking = which == Which::kBlocking;
  return row_locks::Removal::run([&] {
    const Rows removed = (blocking ? blocked : which == Which::kConsumed ? consumed : any).run({array});
    if (removed.size() < ids.size() && may_refuse(Extension::msgs()) &&
        !left.run({array, BoolGetDatum(blocking)}).empty())
      throw refused("mq_msgs", "being removed");
    return removed;
  });
}

// Deletes the rows of claimed messages straight from the table: for a batch the executor costs more
// than the rows. Sets `deleted` for each that was where the claim found it. Deletes none where a trigger,
// rule or policy has to be asked; that is looked at once the table's lock is held, so none can come.
// Throws lost() if another session has one that was not locked.
void delete_rows(const std::vector<const Claimed*>& messages, std::vector<char>& deleted) {
  const Oid table = Extension::msgs();
  const AttrNumber* numbers = attribute_numbers(table);
  const bool lost = guard::call([&] {
    const Relation relation = table_open(table, RowExclusiveLock);
    if (relation->trigdesc != nullptr || relation->rd_rules != nullptr || relation->rd_rel->relrowsecurity) {
      table_close(relation, NoLock);
      return false;
    }
    CheckCmdReplicaIdentity(relation, CMD_DELETE);  // may refuse where a publication has the table
    TupleTableSlot* slot = table_slot_create(relation, nullptr);
    PushActiveSnapshot(GetLatestSnapshot());
    const CommandId command = GetCurrentCommandId(true);
    bool found_lost = false;
    for (std::size_t i = 0; i < messages.size() && !found_lost; ++i) {
      const Claimed& message = *messages[i];
      CHECK_FOR_INTERRUPTS();
      // The handler may have removed or changed the row: then deleting it would be an error.
      const RowState state = row_state(relation, numbers, message, slot);
      if (state == RowState::kThere) {
        ItemPointerData item = item_of(message);
        TM_FailureData failure;
        deleted[i] = table_tuple_delete(relation, &item, command, GetActiveSnapshot(), InvalidSnapshot, message.locked,
                                        &failure, false) == TM_Ok;
      }
      found_lost = !message.locked && state == RowState::kNotFound;
    }
    PopActiveSnapshot();
    ExecDropSingleTupleTableSlot(slot);
    table_close(relation, NoLock);
    CommandCounterIncrement();
    return found_lost;
  });
  if (lost) throw row_locks::lost();
}

// An outside consumer has handled messages after their last lease ran out: removes the dead letters
// that came of that. Those with any other cause stay: also an error that a handler or a consumer gave that
// SQLSTATE, and one that mq_call has raised in a handler, which has a context.
void remove_dead_letters(const std::vector<Uuid>& ids, const Rows& removed) {
  static Statement remove(
      "DELETE FROM $S.mq_dead d USING unnest($1) AS i (id)"
      " WHERE d.id = i.id AND d.sqlstate = $2 AND d.error = $3 AND d.context IS NULL AND d.reason = 'exhausted'"
      "   AND NOT EXISTS (SELECT 1 FROM $S.mq_dead l WHERE l.id = d.id AND l.dead_no > d.dead_no)"
      " RETURNING d.channel_name",
      {UUIDARRAYOID, TEXTOID, TEXTOID});
  if (removed.size() == ids.size()) return;
  std::set<Uuid> there;
  for (std::size_t i = 0; i < removed.size(); ++i) there.insert(uuid_of(removed.get(i, 7)));
  ArrayParam others(UUIDOID);
  for (const Uuid& id : ids)
    if (!there.contains(id)) others.add(uuid_datum(id));
  const Rows dead_letters = remove.run({others.datum(), text_datum(kLeaseRanOut), text_datum(kLeaseRanOutText)});
  stats::ByChannel totals;
  commit_actions::RowChanges changes(Extension::dead());
  for (std::size_t i = 0; i < dead_letters.size(); ++i) {
    const std::string_view channel_name = text_view(dead_letters.get(i, 1));
    ++totals[std::string(channel_name)].handled;
    changes.add(channel_name, -1);
  }
  stats::append(totals);
}

}  // namespace

void lock_claimed(const std::vector<const Claimed*>& messages, bool to_remove) {
  std::vector<const Claimed*> unlocked;
  std::copy_if(messages.begin(), messages.end(), std::back_inserter(unlocked),
               [](const Claimed* message) { return !message->locked; });
  if (unlocked.empty()) return;
  if (has_new_file(Extension::msgs())) throw row_locks::lost();
  const Oid table = Extension::msgs();
  const AttrNumber* numbers = attribute_numbers(table);
  const LockTupleMode mode = to_remove ? LockTupleExclusive : LockTupleNoKeyExclusive;
  const bool lost = guard::call([&] {
    const Relation relation = table_open(table, RowShareLock);
    TupleTableSlot* slot = table_slot_create(relation, nullptr);
    PushActiveSnapshot(GetLatestSnapshot());
    bool found_lost = false;
    for (std::size_t i = 0; i < unlocked.size() && !found_lost; ++i) {
      CHECK_FOR_INTERRUPTS();
      const RowState state = row_state(relation, numbers, *unlocked[i], slot);
      ItemPointerData item = item_of(*unlocked[i]);
      TM_FailureData failure;
      found_lost = state == RowState::kNotFound ||
                   (state == RowState::kThere &&
                    table_tuple_lock(relation, &item, GetActiveSnapshot(), slot, GetCurrentCommandId(true), mode,
                                     LockWaitSkip, 0, &failure) != TM_Ok);
    }
    PopActiveSnapshot();
    ExecDropSingleTupleTableSlot(slot);
    table_close(relation, NoLock);
    return found_lost;
  });
  if (lost) throw row_locks::lost();
}

// Removes messages that this transaction has claimed, by ctid and in the order of the table. No
// other row can be at the ctid of a row that this transaction has locked; a row that was changed
// since the claim is elsewhere. Of a row that was not locked, row_state() makes sure. Messages that
// are missing are removed by id and sequence number.
void remove_claimed(const std::vector<const Claimed*>& messages) {
  if (messages.empty()) return;
  std::vector<const Claimed*> by_location = messages;
  std::sort(by_location.begin(), by_location.end(),
            [](const Claimed* a, const Claimed* b) { return a->location < b->location; });
  std::vector<char> deleted(messages.size(), 0);
  if (!has_new_file(Extension::msgs())) row_locks::Removal::run([&] { delete_rows(by_location, deleted); });
  std::vector<const Claimed*> undeleted;
  for (std::size_t i = 0; i < deleted.size(); ++i)
    if (deleted[i] == 0) undeleted.push_back(by_location[i]);
  lock_claimed(undeleted, true);
  ClaimedRows missing;
  std::set<const Claimed*> left;
  for (const Claimed* message : undeleted) {
    missing.add(*message);
    left.insert(message);
  }
  commit_actions::RowChanges changes(Extension::msgs());
  std::vector<HeadlessChannel> headless;
  const Claimed* last = nullptr;  // of the run that was removed from the head of a channel
  for (const Claimed* message : messages) {
    if (left.contains(message)) continue;
    changes.add(message->channel_name, -1);
    if (!message->ordered) continue;
    if (message->after == Uuid()) {
      headless.push_back(
          {message->channel_key, std::string(message->channel_name), std::string(message->channel_args), message->seq});
      last = message;
    } else if (last != nullptr && message->after == last->id) {
      headless.back().behind = message->seq;
      last = message;
    }
  }
  link_or_note(headless);
  if (missing.size > 0) {
    const Rows others = remove_rows(missing);
    link_behind(others);
    count_removed(others);
  }
  const bool waited_for = prerequisites::any();
  if (!commit_actions::wants_ended() && !waited_for) return;
  std::vector<Uuid> ids;
  for (const Claimed* message : messages) ids.push_back(message->id);
  commit_actions::ended(ids);
  if (waited_for) prerequisites::ended(ids, prerequisites::End::kHandled, false);
}

void remove_dead_lettered(const std::vector<const Claimed*>& messages) {
  if (messages.empty()) return;
  ClaimedRows rows;
  for (const Claimed* message : messages) rows.add(*message);
  const Rows removed = remove_rows(rows);
  link_behind(removed);
  count_removed(removed);
}

void remove_messages(const std::vector<Uuid>& ids, bool consumed) {
  if (ids.empty()) return;
  const Rows removed = remove_rows(ids, consumed ? Which::kConsumed : Which::kAny);
  link_behind(removed);
  count_removed(removed);
  ended(removed, 7);
  if (!consumed) return;
  keep_removed(removed, 9);
  count_consumed(removed);
  remove_dead_letters(ids, removed);
}

void remove_blocking(const std::vector<Uuid>& ids) {
  if (ids.empty()) return;
  const Rows removed = remove_rows(ids, Which::kBlocking);
  link_behind(removed);
  count_removed(removed);
}

void clear_messages(const Param& channel_names) {
  // Locks rows in the order of their ids, lest it deadlock with others that do. Returns, by the
  // fifth column, removed heads (true), the number of removed messages of each name (false, in the
  // column of `seq`), and how many rows a trigger, rule or policy has kept (NULL, the last row); and, if
  // $2, all ids in the sixth column, of rows that count no message; the last column says whether they blocked.
  static Statement clear(
      "WITH doomed AS MATERIALIZED (SELECT m.id FROM $S.mq_msgs m WHERE $1 IS NULL OR m.channel_name = ANY ($1)"
      "                               ORDER BY m.id FOR UPDATE),"
      " gone AS (DELETE FROM $S.mq_msgs m USING doomed d WHERE m.id = d.id"
      "         RETURNING m.channel_key, m.channel_name, m.channel_args, m.seq, m.after_message_id, m.id,"
      "         m.attempt_at IS NULL AS blocked)"
      " SELECT m.channel_key, m.channel_name, m.channel_args, m.seq, true, NULL::uuid, false FROM gone m"
      "  WHERE m.after_message_id = $N UNION ALL SELECT 0, m.channel_name, '', count(*), false, NULL, false FROM gone m"
      " GROUP BY m.channel_name"
      " UNION ALL SELECT 0, m.channel_name, '', 0, false, m.id, m.blocked FROM gone m WHERE $2"
      " UNION ALL SELECT 0, '', '', k.kept, NULL, NULL, false"
      "   FROM (SELECT (SELECT count(*) FROM doomed) - (SELECT count(*) FROM gone) AS kept) AS k WHERE k.kept > 0",
      {TEXTARRAYOID, BOOLOID});
  const Rows rows = clear.run({channel_names, BoolGetDatum(prerequisites::any())});
  if (!rows.empty() && rows.is_null(rows.size() - 1, 5)) throw refused("mq_msgs", "being removed");
  link_behind(rows);
  commit_actions::RowChanges changes(Extension::msgs());
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (!DatumGetBool(rows.get(i, 5))) changes.add(text_view(rows.get(i, 2)), -DatumGetInt64(rows.get(i, 4)));
  commit_actions::any_ended();
  ended(rows, 6);
}

}  // namespace mq
