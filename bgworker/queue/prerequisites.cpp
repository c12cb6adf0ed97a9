#include "queue/prerequisites.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "pg/format.hpp"
#include "pg/session.hpp"
#include "pg/statement.hpp"
#include "queue/commit_actions.hpp"
#include "queue/enabled.hpp"
#include "queue/find.hpp"
#include "queue/note_walk.hpp"
#include "queue/settle.hpp"
#include "queue/uuid.hpp"

namespace mq::prerequisites {

namespace {

constexpr std::int64_t kRechecks = 100;  // noted pairs that a claim looks at

// Pairs that could not be told about, since transactions in progress are at them.
using Open = std::set<Prerequisite>;

// What ended in this transaction and has not been looked at yet: dead_letter() below calls settle(),
// which calls ended() again.
struct Worklist {
  std::vector<Uuid> handled, dead, waited;
  bool at_work = false;
};

Worklist& worklist() {
  static auto* list = new Worklist();  // a pointer, so that nothing is destroyed at exit
  return *list;
}

class AtWork {
 public:
  explicit AtWork(Worklist& list) : list_(list) { list_.at_work = true; }
  ~AtWork() { list_ = {}; }
  AtWork(const AtWork&) = delete;
  AtWork& operator=(const AtWork&) = delete;

 private:
  Worklist& list_;
};

// Notes the pairs, and wakes those who may look at them again when this transaction has committed.
void note(const Open& open) {
  if (open.empty()) return;
  const std::vector<Prerequisite> pairs(open.begin(), open.end());
  add_rechecks(pairs);
  Uuid last;
  for (const Prerequisite& pair : pairs) {
    if (pair.dependent == last) continue;
    last = pair.dependent;
    const std::string_view channel_name = channel_of(pair.dependent);
    if (channel_name.empty())
      commit_actions::wake_workers();
    else
      commit_actions::wake(channel_name);
  }
}

std::unordered_set<Uuid, UuidHash> still_waiting(std::span<const Uuid> messages) {
  static Statement find("SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.due_at IS NOT NULL", {UUIDARRAYOID});
  std::unordered_set<Uuid, UuidHash> waiting;
  if (messages.empty()) return waiting;
  const Rows rows = find.run({uuid_array(messages)});
  for (std::size_t i = 0; i < rows.size(); ++i) waiting.insert(uuid_of(rows.get(i, 1)));
  return waiting;
}

// Makes messages due that wait for nothing any more; `pairs` says what each waited for last. Those
// that another session has locked are added to `open`. Returns how many became due.
std::size_t release(const std::vector<Prerequisite>& pairs, Open& open) {
  static Statement release(
      "WITH w AS MATERIALIZED (SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.due_at IS NOT NULL"
      "                          ORDER BY m.id FOR NO KEY UPDATE SKIP LOCKED)"
      " UPDATE $S.mq_msgs m SET attempt_at = LEAST(GREATEST(m.due_at, $2), m.expires_at), due_at = NULL, fair = true"
      "  FROM w WHERE m.id = w.id RETURNING m.id, m.channel_name, m.attempt_at, m.seq, $H, m.priority",
      {UUIDARRAYOID, TIMESTAMPTZOID});
  if (pairs.empty()) return 0;
  std::vector<Uuid> ids;
  for (const Prerequisite& pair : pairs) ids.push_back(pair.dependent);
  const Rows released = release.run({uuid_array(ids), TimestampTzGetDatum(GetCurrentTimestamp())});
  for (std::size_t i = 0; i < released.size(); ++i) {
    const std::string_view channel_name = text_view(released.get(i, 2));
    commit_actions::wake(channel_name);
    if (DatumGetBool(released.get(i, 5)))
      commit_actions::due(channel_name, DatumGetInt16(released.get(i, 6)),
                          {DatumGetTimestampTz(released.get(i, 3)), DatumGetInt64(released.get(i, 4))});
  }
  if (released.size() == ids.size()) return released.size();
  const auto waiting = still_waiting(ids);
  for (const Prerequisite& pair : pairs)
    if (waiting.contains(pair.dependent)) open.insert(pair);
  return released.size();
}

// The rows of these pairs are gone: releases the dependents without a further row. Returns how many.
std::size_t release_free(const std::vector<Prerequisite>& pairs, Open& open) {
  std::vector<Prerequisite> free;
  if (pairs.empty()) return 0;
  for (const PrerequisiteRow& row : any_row_of(pairs)) {
    if (row.seen == Seen::kNot) free.push_back(row.pair);
    if (row.seen == Seen::kDisturbed) open.insert(row.pair);
    // A transaction that notes one of our rows cannot be told that they are gone before we commit.
    if (row.seen == Seen::kThere) commit_actions::wake_workers();
  }
  return release(free, open);
}

// Moves the dependents to the dead letters. `rows` are kThere.
void dead_letter(const std::vector<PrerequisiteRow>& rows, Open& open) {
  std::map<Uuid, Uuid> cause;
  for (const PrerequisiteRow& row : rows) cause.emplace(row.pair.dependent, row.pair.prerequisite);
  std::vector<Uuid> ids;
  for (const auto& [dependent, prerequisite] : cause) ids.push_back(dependent);
  Batch batch;
  find_waiting(ids, batch);
  Settlement settlement;
  for (const Claimed& message : batch)
    settlement.dead_letters.push_back(
        {.message = &message,
         .reason = "prerequisite",
         .error = Error(kPrerequisiteIsDead,
                        mq::format("message {}, which it waited for, is dead", uuid_text(cause[message.id]))),
         .charged = false,
         .block_as_registered = true});
  if (!batch.empty()) settle(settlement);
  if (batch.size() == ids.size()) return;
  for (const Claimed& message : batch) cause.erase(message.id);
  const auto waiting = still_waiting(ids);
  std::vector<PrerequisiteRow> stale;  // of messages that do not wait any more
  for (const PrerequisiteRow& row : rows) {
    if (!cause.contains(row.pair.dependent)) continue;
    if (waiting.contains(row.pair.dependent))
      open.insert(row.pair);
    else
      stale.push_back(row);
  }
  (void)remove_rows(stale);
}

// The prerequisites of these rows have ended.
void resolve(std::span<const PrerequisiteRow> rows, End how, Open& open) {
  std::vector<PrerequisiteRow> there;
  std::vector<Prerequisite> gone;
  for (const PrerequisiteRow& row : rows) {
    if (row.seen == Seen::kThere) there.push_back(row);
    if (row.seen == Seen::kDisturbed) open.insert(row.pair);
    if (row.seen == Seen::kNot) gone.push_back(row.pair);
  }
  if (how == End::kDead) {
    dead_letter(there, open);
  } else {
    const std::vector<char> removed = remove_rows(there);
    std::map<Uuid, Uuid> last;  // of the rows of each dependent
    for (std::size_t i = 0; i < there.size(); ++i) {
      const Prerequisite& pair = there[i].pair;
      if (removed[i] == 0)
        open.insert(pair);
      else
        last[pair.dependent] = std::max(last[pair.dependent], pair.prerequisite);
    }
    for (const auto& [dependent, prerequisite] : last) gone.push_back({dependent, prerequisite});
  }
  (void)release_free(gone, open);
}

}  // namespace

States states_of(std::span<const Uuid> messages) {
  static Statement find(
      "SELECT m.id, true FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.attempt_at IS NOT NULL"
      " UNION ALL SELECT d.id, false FROM $S.mq_dead d WHERE d.id = ANY ($1)",
      {UUIDARRAYOID});
  States states;
  if (messages.empty()) return states;
  const Rows rows = find.run({uuid_array(messages)});
  for (std::size_t i = 0; i < rows.size(); ++i)
    (DatumGetBool(rows.get(i, 2)) ? states.pending : states.dead).insert(uuid_of(rows.get(i, 1)));
  for (const Uuid& id : states.pending) states.dead.erase(id);
  return states;
}

void reuse(const std::vector<Uuid>& messages) {
  if (messages.empty() || !any()) return;
  const States states = states_of(messages);
  std::vector<Uuid> dead, gone;
  for (const Uuid& id : messages)
    if (!states.pending.contains(id)) (states.dead.contains(id) ? dead : gone).push_back(id);
  ended(dead, End::kDead, false);
  ended(gone, End::kHandled, false);
}

// The race of S, which sends d behind p, with R, which ends p: each does its part before it looks at the
// other's, so one of them sees the other's.
void wait_for(std::span<const Prerequisite> pending, std::span<const Prerequisite> dead) {
  add_rows(pending);
  add_rows(dead);
  std::vector<Uuid> ids;
  for (const Prerequisite& pair : pending) ids.push_back(pair.prerequisite);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  const std::span<const Seen> seen = pending_now(ids);
  std::unordered_set<Uuid, UuidHash> unsure;
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (seen[i] != Seen::kThere) unsure.insert(ids[i]);
  Open open;
  for (const Prerequisite& pair : pending)
    if (unsure.contains(pair.prerequisite)) open.insert(pair);
  std::vector<PrerequisiteRow> rows;
  for (const Prerequisite& pair : dead) rows.push_back({pair, Seen::kThere, 0});
  if (!rows.empty()) dead_letter(rows, open);
  note(open);
}

void ended(const std::vector<Uuid>& messages, End how, bool waited) {
  if (messages.empty() || !any()) return;
  Worklist& list = worklist();
  std::vector<Uuid>& ids = how == End::kDead ? list.dead : list.handled;
  ids.insert(ids.end(), messages.begin(), messages.end());
  if (waited) list.waited.insert(list.waited.end(), messages.begin(), messages.end());
  if (list.at_work) return;
  const AtWork at_work(list);
  Open open;
  while (!list.dead.empty() || !list.handled.empty()) {
    const std::vector<Uuid> dependents = std::exchange(list.waited, {});
    const std::vector<Uuid> dead = std::exchange(list.dead, {});
    const std::vector<Uuid> handled = std::exchange(list.handled, {});
    std::vector<PrerequisiteRow> own;
    for (const PrerequisiteRow& row : rows_of_dependents(dependents))
      if (row.seen == Seen::kThere) own.push_back(row);
    (void)remove_rows(own);
    resolve(rows_of(dead), End::kDead, open);
    resolve(rows_of(handled), End::kHandled, open);
  }
  note(open);
}

namespace {

// Pairs that are looked at again, by what has become of their prerequisites.
struct Again {
  std::vector<Prerequisite> handled, dead, pending;
};

void look_again(const Again& again, Open& open) {
  resolve(rows_of_pairs(again.handled), End::kHandled, open);
  resolve(rows_of_pairs(again.dead), End::kDead, open);
  // Whoever ends one that is pending looks at its row later; unless it has looked already, and that
  // transaction is in progress.
  std::vector<Uuid> ids;
  for (const Prerequisite& pair : again.pending) ids.push_back(pair.prerequisite);
  const std::span<const Seen> seen = pending_now(ids);
  std::vector<Prerequisite> gone;
  std::size_t i = 0;
  for (const PrerequisiteRow& row : rows_of_pairs(again.pending)) {
    const Prerequisite& pair = again.pending[i];
    if (seen[i] != Seen::kThere || row.seen == Seen::kDisturbed)
      open.insert(pair);
    else if (row.seen == Seen::kNot)
      gone.push_back(pair);
    ++i;
  }
  (void)release_free(gone, open);
}

}  // namespace

bool recheck() {
  // Whether the prerequisite is pending (true), dead (false) or neither (NULL).
#define STATE_OF(id)                                            \
  "CASE WHEN EXISTS (SELECT FROM $S.mq_msgs p WHERE p.id = " id \
  " AND p.attempt_at IS NOT NULL) THEN true"                    \
  "     WHEN EXISTS (SELECT FROM $S.mq_dead d WHERE d.id = " id ") THEN false END"
  static Statement select(
      "SELECT l.ctid, l.xmin, l.dependent, l.prerequisite, " STATE_OF("l.prerequisite")
      " FROM (SELECT n.ctid, n.xmin, n.dependent, n.prerequisite FROM $S.mq_rechecks n WHERE " NOTES_BEHIND ") AS l",
      {TIDOID, INT8OID});
  static Statement forget("DELETE FROM $S.mq_rechecks n WHERE " NOTES_OF("$S.mq_rechecks"), {TIDARRAYOID, XIDARRAYOID});
  static NoteWalk walk(kRechecks);
  if (!has_rechecks()) return false;
  const Rows rows = walk.step(select);
  if (rows.empty() || !enabled::still_here()) return false;
  Again again;
  std::vector<Prerequisite> noted;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    noted.push_back({uuid_of(rows.get(i, 3)), uuid_of(rows.get(i, 4))});
    bool neither = false;
    const bool pending = DatumGetBool(rows.get(i, 5, neither));
    (neither ? again.handled : pending ? again.pending : again.dead).push_back(noted.back());
  }
  Open open;
  // A trigger or a lock of somebody's may fail this. It must not stop claims; the sweep tries it, too, and
  // reports what fails.
  SavepointOnly session;
  session.set_savepoint();
  try {
    look_again(again, open);
    (void)session.release_savepoint();
  } catch (const Error& error) {
    if (error.sqlstate.starts_with("57")) throw;  // cancel or shutdown
    session.rollback_to_savepoint();
    return true;
  }
  const bool left = !open.empty();
  NoteWalk::forget(forget, rows, [&](std::size_t i) { return !open.contains(noted[i]); });
  for (const Prerequisite& pair : noted) open.erase(pair);
  add_rechecks(std::vector<Prerequisite>(open.begin(), open.end()));
  return left || walk.left_some(rows);
}

bool sweep(std::size_t most) {
  static Statement find(
      "SELECT r.dependent, r.prerequisite, " STATE_OF("r.prerequisite") ","
      "       EXISTS (SELECT FROM $S.mq_msgs m WHERE m.id = r.dependent AND m.due_at IS NOT NULL)"
      "  FROM (SELECT q.dependent, q.prerequisite FROM $S.mq_prerequisites q"
      "         WHERE (q.prerequisite, q.dependent) > ($1, $2) ORDER BY q.prerequisite, q.dependent LIMIT $3) AS r",
      {UUIDOID, UUIDOID, INT8OID});
  static Prerequisite from;  // where the last step ended
  if (!any()) return false;
  const Rows rows = find.run(
      {uuid_datum(from.prerequisite), uuid_datum(from.dependent), Int64GetDatum(static_cast<std::int64_t>(most))});
  from = {};
  if (rows.size() == most) from = {uuid_of(rows.get(most - 1, 1)), uuid_of(rows.get(most - 1, 2))};
  Again again;
  std::vector<Prerequisite> stale;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Prerequisite pair{uuid_of(rows.get(i, 1)), uuid_of(rows.get(i, 2))};
    bool neither = false;
    const bool pending = DatumGetBool(rows.get(i, 3, neither));
    if (!DatumGetBool(rows.get(i, 4)))
      stale.push_back(pair);
    else if (neither)
      again.handled.push_back(pair);
    else if (!pending)
      again.dead.push_back(pair);
  }
  const std::size_t found = stale.size() + again.handled.size() + again.dead.size();
  if (found == 0 || !enabled::still_here()) return false;
  Open open;
  std::vector<PrerequisiteRow> gone;
  if (!stale.empty())
    for (const PrerequisiteRow& row : rows_of_pairs(stale))
      if (row.seen == Seen::kThere) gone.push_back(row);
  (void)remove_rows(gone);
  look_again(again, open);
  return found > open.size() + stale.size() - gone.size();
}

bool release_without_rows(std::span<const Uuid> messages) {
  std::vector<Prerequisite> pairs;
  for (const Uuid& id : messages) pairs.push_back({id, {}});
  Open open;
  return release_free(pairs, open) > 0;
}

}  // namespace mq::prerequisites
