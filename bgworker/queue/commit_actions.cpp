#include "queue/commit_actions.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>
#include <vector>

#include "pg/crash_point.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/settings.h"
#include "pg/statement.hpp"
#include "pg/subtransactions.hpp"
#include "queue/head_links.hpp"
#include "queue/low_water.hpp"
#include "queue/stay_locks.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/consumers.hpp"
#include "shmem/rare_writes.hpp"
#include "shmem/receivers.hpp"
#include "shmem/requests.hpp"
#include "shmem/schedule_times.hpp"
#include "shmem/shared.hpp"
#include "shmem/waiters.hpp"
#include "stats/row_counts.hpp"

extern "C" {
#include "commands/async.h"
#include "mb/pg_wchar.h"
#include "utils/fmgrprotos.h"
}

namespace mq::commit_actions {

namespace {

struct Append {
  HeadlessChannel channel;
  Uuid predecessor;
  std::int64_t seq;  // the predecessor's
};

struct Lease {
  Uuid message;
  Micros leased_at;
  Micros length;
  std::int64_t token;
};

struct ChangeKey {
  Oid relation;
  std::int64_t name_key;
  friend auto operator<=>(const ChangeKey&, const ChangeKey&) = default;
};

// The row changes of one subtransaction. In CommitActions::frames it stands before those inside it.
struct Frame {
  SubTransactionId subtransaction;
  std::map<ChangeKey, Changed> changes;
};

struct EmptyChannel {
  std::uint64_t mark_key;
  std::int64_t seq;
};

// What became due of a channel name.
struct Due {
  Position lowest;
  std::int64_t name_key;      // channel_key() of the name and no arguments
  std::int64_t messages = 1;  // how many
};

struct CommitActions {
  std::set<std::string, std::less<>> woken;
  std::vector<std::int64_t> handled;           // channel_key() of those names that only their handlers matter to
  bool wakes_all = false;                      // some name matters to others
  std::unordered_map<std::uint64_t, Due> due;  // by low_water::key_of()
  std::vector<Append> appends;
  std::unordered_map<std::int64_t, Uuid> tails;
  AppendLocks append_locks;
  BySubtransaction<Lease> leases;
  BySubtransaction<EmptyChannel> empty_channels;
  std::vector<Frame> frames;
  std::set<Oid> uncounted;  // tables whose row counts are to be dropped
  // Messages that have ended; `some_ended`: others may have, which nobody waited for when that was noted.
  std::vector<Uuid> ended;
  bool some_ended = false;
  bool announced = false;
  bool schedules_changed = false;
  bool databases_changed = false;
  std::set<std::pair<Oid, Oid>> settings;  // (database, role) of ALTER ... SET
  bool unnotified = false;                 // see shared::begin_unnotified_commit
};

// Made by a transaction's first note, deleted at its end. A pointer, lest it be destroyed at exit.
CommitActions* open_actions = nullptr;

// NOTIFY fails when its queue is full. A listening session in a long transaction can fill it.
bool has_room_for_notifications() {
  constexpr double kFull = 0.9;
  return guard::call([] { return DatumGetFloat8(DirectFunctionCall1(pg_notification_queue_usage, Datum{0})); }) < kFull;
}

void notify_consumers(CommitActions& actions) {
  if (actions.woken.empty() || mq_notify == MQ_NOTIFY_OFF) return;
  if (mq_notify == MQ_NOTIFY_AUTO) {
    actions.unnotified = shared::begin_unnotified_commit();
    if (actions.unnotified || !has_room_for_notifications()) return;
  }
  for (const std::string& name : actions.woken) {
    // LISTEN takes an identifier, which the server cuts to NAMEDATALEN - 1 bytes: cut the same way.
    std::string channel = "mq_" + name;
    channel.resize(
        static_cast<std::size_t>(pg_mbcliplen(channel.data(), static_cast<int>(channel.size()), NAMEDATALEN - 1)));
    const char* text = channel.c_str();
    guard::call([&] { Async_Notify(text, ""); });
  }
  guard::call([] { Async_Notify("mq", ""); });
}

// The race of A, which appends a behind t, with D, which deletes t (docs/internals/ordering.md).
//
//   1  A: inserts a; it sees t.
//   2  D: starts to delete t; it does not see a.
//   3  A: before COMMIT, tries to have t stay without waiting (stay_locks.hpp).
//   4  D, if A has the lock: waits for A's commit, which waits for no open transaction; its next
//      statement sees a and makes it the head.
//   5  A, if t is locked or gone: makes the first message that is left the head, or, where that is
//      locked, notes the channel as headless for a later claim.
//
// t is what was appended to: when it is gone there may be another message with its id, which is behind a.
void link_appends(const std::vector<Append>& appends) {
  static Statement find(
      "SELECT r.n::int4, m.ctid FROM unnest($1, $2, $3) WITH ORDINALITY AS r (id, seq, key, n)"
      "  JOIN ONLY $S.mq_msgs m ON m.id = r.id AND m.seq = r.seq AND m.channel_key = r.key",
      {UUIDARRAYOID, INT8ARRAYOID, INT8ARRAYOID});
  const std::size_t n = appends.size();
  ArrayParam ids(UUIDOID, n), numbers(INT8OID, n), keys(INT8OID, n);
  for (const Append& append : appends) {
    ids.add(uuid_datum(append.predecessor));
    numbers.add(Int64GetDatum(append.seq));
    keys.add(Int64GetDatum(append.channel.key));
  }
  const Rows rows = find.run({ids.datum(), numbers.datum(), keys.datum()});
  std::vector<Located> tails;
  std::vector<char> there(n, 0);
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const auto i = static_cast<std::size_t>(DatumGetInt32(rows.get(row, 1)) - 1);
    tails.push_back({appends[i].predecessor, *reinterpret_cast<ItemPointer>(DatumGetPointer(rows.get(row, 2)))});
    there[i] = 1;
  }
  const auto held = lock_to_stay(tails, false);
  std::vector<HeadlessChannel> headless;
  for (std::size_t i = 0; i < n; ++i)
    if (there[i] == 0 || !held.contains(appends[i].predecessor)) headless.push_back(appends[i].channel);
  link_or_note(headless, Stays::kToCommit);
}

// A lease counts from the poll, but no other session can have the message before the poll's
// transaction is over. Where that took more than a tenth of the lease, the lease starts again. Of a message
// that was polled again after its lease had run out the last one counts.
std::vector<Lease> to_prolong(const BySubtransaction<Lease>& leases) {
  const Micros now = GetCurrentTimestamp();
  std::map<std::pair<Uuid, std::int64_t>, Lease> last;
  for (const auto& [subtransaction, lease] : leases.entries())
    if (now - lease.leased_at > lease.length / 10) last[{lease.message, lease.token}] = lease;
  std::vector<Lease> late;
  for (const auto& [key, lease] : last) late.push_back(lease);
  return late;
}

void prolong(const std::vector<Lease>& leases) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = l.lease_end"
      "  FROM unnest($1, $2, $3) AS l (id, lease_end, token)"
      " WHERE m.id = l.id AND COALESCE(m.lease, 1) = l.token AND m.attempt_at < l.lease_end",
      {UUIDARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID});
  const Micros now = GetCurrentTimestamp();
  ArrayParam ids(UUIDOID);
  ArrayParam ends(TIMESTAMPTZOID), tokens(INT8OID);
  for (const Lease& lease : leases) {
    tokens.add(Int64GetDatum(lease.token));
    ids.add(uuid_datum(lease.message));
    ends.add(TimestampTzGetDatum(now + lease.length));
  }
  update.run({ids.datum(), ends.datum(), tokens.datum()});
}

// The user may have set the transaction READ ONLY after it wrote; the commit actions write still.
struct WritableScope {
  WritableScope() { XactReadOnly = false; }
  ~WritableScope() { XactReadOnly = saved; }
  WritableScope(const WritableScope&) = delete;
  WritableScope& operator=(const WritableScope&) = delete;
  const bool saved = XactReadOnly;
};

void before_commit(CommitActions& actions) {
  MQ_CRASH_POINT(commit_begins);
  const std::vector<Lease> late = to_prolong(actions.leases);
  if (!actions.appends.empty() || !late.empty()) {
    if (!Extension::installed()) return;
    guard::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
    {
      const WritableScope writable;
      OwnerScope scope;
      SpiConnection spi;
      if (!actions.appends.empty()) link_appends(actions.appends);
      MQ_CRASH_POINT_IF(!actions.appends.empty(), commit_linked);
      if (!late.empty()) prolong(late);
    }
    PopActiveSnapshot();
  }
  notify_consumers(actions);
  MQ_CRASH_POINT(commit_ready);
}

// Nobody would know of the messages any more until COMMIT PREPARED, and then they could be too many.
void refuse_prepare_with_reservations(const CommitActions& actions) {
  for (const Frame& frame : actions.frames)
    for (const auto& [key, changed] : frame.changes)
      if (changed.reserved > 0)
        throw Error("0A000", "cannot PREPARE a transaction that has sent messages to a channel with max_pending", "",
                    "COMMIT it, or take the limit of the channel away before it sends.");
}

void before_prepare(const CommitActions& actions) {
  refuse_prepare_with_reservations(actions);
  if (actions.appends.empty() || !Extension::installed()) return;
  std::vector<HeadlessChannel> channels;
  for (const Append& append : actions.appends) channels.push_back(append.channel);
  MQ_CRASH_POINT(prepare_begins);
  guard::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
  {
    const WritableScope writable;
    OwnerScope scope;
    SpiConnection spi;
    note_headless(channels);
  }
  PopActiveSnapshot();
  MQ_CRASH_POINT(prepare_noted);
}

// Without an allocation, as no pg guard may be there to catch an exception.
void release_reservations(Frame& frame) {
  for (auto& [key, changed] : frame.changes) {
    if (changed.reserved != 0) row_counts::release(key.name_key, changed.reserved);
    changed.reserved = 0;
  }
}

void forget() {
  for (Frame& frame : open_actions->frames) release_reservations(frame);
  if (!open_actions->frames.empty()) row_counts::end_commit();
  if (open_actions->unnotified) shared::end_unnotified_commit();
  delete open_actions;
  open_actions = nullptr;
}

// For XACT_EVENT_COMMIT: other transactions see the changes by then, as row_counts.hpp asks for.
void pay_counts() {
  for (const Oid relation : open_actions->uncounted) row_counts::forget(relation);
  if (open_actions->frames.empty()) return;
  for (auto& [key, changed] : open_actions->frames.front().changes) {
    row_counts::apply({key.relation, key.name_key, changed.rows, changed.ordered, changed.delayed, changed.reserved});
    changed.reserved = 0;
  }
}

void wake_receivers() {
  const Micros now = GetCurrentTimestamp();
  if (open_actions->announced) shared::wake_all_receivers();
  for (const auto& [key, due] : open_actions->due)
    shared::wake_receivers(due.name_key, due.lowest.attempt_at, now, due.messages);
}

void wake_waiters() {
  if (open_actions->announced || open_actions->some_ended)
    shared::wake_all_waiters();
  else
    shared::wake_waiters(open_actions->ended);
}

void transaction_event(XactEvent event, void*) {
  if (open_actions == nullptr) return;
  switch (event) {
    case XACT_EVENT_PRE_COMMIT:
      guard::callback([] { before_commit(*open_actions); });
      if (!open_actions->frames.empty()) row_counts::begin_commit();
      break;
    case XACT_EVENT_PRE_PREPARE:
      guard::callback([] { before_prepare(*open_actions); });
      break;
    case XACT_EVENT_COMMIT:
      MQ_CRASH_POINT(commit_done);
      pay_counts();
      MQ_CRASH_POINT(commit_counted);
      if (open_actions->databases_changed) shared::look_around();
      for (const auto& [database, role] : open_actions->settings) shared::renew_workers(database, role);
      if (open_actions->announced) shared::announce_database(MyDatabaseId);
      for (const auto& [key, due] : open_actions->due) low_water::lower(key, due.lowest);
      for (const auto& [subtransaction, channel] : open_actions->empty_channels.entries())
        low_water::channel_was_empty(channel.mark_key, channel.seq);
      MQ_CRASH_POINT(commit_lowered);
      if (open_actions->schedules_changed) shared::schedules_changed(MyDatabaseId);
      if (open_actions->wakes_all || open_actions->announced)
        shared::wake_workers(MyDatabaseId);
      else if (!open_actions->handled.empty())
        shared::wake_handlers(MyDatabaseId, open_actions->handled);
      if (shared::any_receivers()) wake_receivers();
      if ((open_actions->announced || open_actions->some_ended || !open_actions->ended.empty()) &&
          shared::any_waiters())
        wake_waiters();
      MQ_CRASH_POINT(commit_woken);
      forget();
      break;
    case XACT_EVENT_ABORT:
      MQ_CRASH_POINT(abort_begins);
      [[fallthrough]];
    case XACT_EVENT_PREPARE:
      forget();
      break;
    default:
      break;
  }
}

// Adds a subtransaction's row changes to its parent's. No pg guard would catch an exception here,
// so it allocates nothing.
void merge_frame(SubTransactionId parent) {
  std::vector<Frame>& frames = open_actions->frames;
  frames.back().subtransaction = parent;
  if (frames.size() < 2 || frames[frames.size() - 2].subtransaction != parent) return;
  Frame inner = std::move(frames.back());
  frames.pop_back();
  frames.back().changes.merge(inner.changes);
  for (const auto& [key, changed] : inner.changes) {  // merge() left the keys that both have
    Changed& sum = frames.back().changes.find(key)->second;
    sum.rows += changed.rows;
    sum.ordered = sum.ordered || changed.ordered;
    sum.delayed = sum.delayed || changed.delayed;
    sum.reserved += changed.reserved;
  }
}

// Drops the notes that would do harm after their subtransaction was rolled back: leases that do not
// exist, channels that are empty as before, rows that were neither inserted nor deleted.
void subtransaction_ends(const SubtransactionEnd& end) {
  if (open_actions == nullptr) return;
  open_actions->leases.ends(end);
  open_actions->empty_channels.ends(end);
  std::vector<Frame>& frames = open_actions->frames;
  if (frames.empty() || frames.back().subtransaction != end.mine) return;
  if (end.committed) {
    merge_frame(end.parent);
  } else {
    release_reservations(frames.back());
    frames.pop_back();
  }
}

CommitActions& actions() {
  static bool registered = false;
  if (!registered) {
    guard::call([] { RegisterXactCallback(transaction_event, nullptr); });
    at_subtransaction_end(subtransaction_ends);
    registered = true;
  }
  if (open_actions == nullptr) open_actions = new CommitActions();
  return *open_actions;
}

}  // namespace

void wake(std::string_view channel_name) {
  CommitActions& l = actions();
  l.wakes_all = true;
  if (!l.woken.contains(channel_name)) l.woken.emplace(channel_name);
}

void wake_workers() {
  actions().wakes_all = true;
}

void wake_handlers(std::string_view channel_name) {
  CommitActions& l = actions();
  if (l.woken.contains(channel_name)) return;
  l.handled.push_back(channel_key(channel_name, {}));
  l.woken.emplace(channel_name);
}

void due(std::string_view channel_name, int priority, Position position) {
  if (!shared::available()) return;
  if (priority != 0) shared::rare_write(shared::Rare::kPriorities);
  const auto [entry, is_new] = actions().due.try_emplace(low_water::key_of(channel_name, priority), Due{position, 0});
  Due& due = entry->second;
  if (is_new) {
    due.name_key = channel_key(channel_name, {});
  } else {
    due.lowest = std::min(due.lowest, position);
    ++due.messages;
  }
}

// A session that begins to wait after this, and before the commit, is woken by that, whatever it waits for.
void ended(std::span<const Uuid> messages) {
  constexpr std::size_t kMost = 100'000;
  if (messages.empty() || !wants_ended()) return;
  CommitActions& l = actions();
  if (l.ended.size() + messages.size() > kMost)
    l.some_ended = true;
  else
    l.ended.insert(l.ended.end(), messages.begin(), messages.end());
}

bool wants_ended() {
  if (!shared::available() || (open_actions != nullptr && open_actions->some_ended)) return false;
  if (shared::any_waiters()) return true;
  actions().some_ended = true;
  return false;
}

void any_ended() {
  if (shared::available()) actions().some_ended = true;
}

std::optional<Position> own_lowest(std::uint64_t name_key) {
  if (open_actions == nullptr) return std::nullopt;
  const auto found = open_actions->due.find(name_key);
  return found == open_actions->due.end() ? std::nullopt : std::optional(found->second.lowest);
}

void appended(std::int64_t channel_key, std::string_view channel_name, std::string_view channel_args,
              const Uuid& predecessor, std::int64_t seq) {
  actions().appends.push_back({{channel_key, std::string(channel_name), std::string(channel_args)}, predecessor, seq});
}

const Uuid* own_tail(std::int64_t channel_key) {
  if (open_actions == nullptr) return nullptr;
  const auto found = open_actions->tails.find(channel_key);
  return found == open_actions->tails.end() ? nullptr : &found->second;
}

void set_own_tail(std::int64_t channel_key, const Uuid& message) {
  actions().tails[channel_key] = message;
}

AppendLocks& append_locks() {
  return actions().append_locks;
}

void was_empty(std::uint64_t mark_key, std::int64_t seq) {
  if (shared::available()) actions().empty_channels.add({mark_key, seq});
}

void leased(const Uuid& message, Micros leased_at, Micros lease, std::int64_t token) {
  actions().leases.add({message, leased_at, lease, token});
}

Changed& changes_of(Oid relation, std::int64_t name_key) {
  std::vector<Frame>& frames = actions().frames;
  const SubTransactionId current = GetCurrentSubTransactionId();
  if (frames.empty() || frames.back().subtransaction != current) frames.push_back({current, {}});
  return frames.back().changes[{relation, name_key}];
}

row_counts::Own own_changes(Oid relation, std::int64_t name_key) {
  row_counts::Own own;
  if (open_actions == nullptr) return own;
  for (const Frame& frame : open_actions->frames)
    if (const auto found = frame.changes.find({relation, name_key}); found != frame.changes.end()) {
      own.rows += found->second.rows;
      own.reserved += found->second.reserved;
    }
  return own;
}

void RowChanges::add(std::string_view channel_name, std::int64_t rows, bool ordered, bool delayed) {
  if (sum_ == nullptr || channel_name != name_) {
    name_ = channel_name;
    sum_ = &changes_of(relation_, channel_key(channel_name, {}));
  }
  sum_->rows += rows;
  sum_->ordered = sum_->ordered || ordered;
  sum_->delayed = sum_->delayed || (ordered && delayed);
}

void changed_by_hand(Oid relation) {
  actions().uncounted.insert(relation);
}

bool was_changed_by_hand(Oid relation) {
  return open_actions != nullptr && open_actions->uncounted.contains(relation);
}

bool has_changed() {
  return open_actions != nullptr && (!open_actions->frames.empty() || !open_actions->uncounted.empty());
}

void announce() {
  actions().announced = true;
}

void schedules_changed() {
  CommitActions& l = actions();
  l.schedules_changed = l.wakes_all = true;
}

void databases_changed() {
  actions().databases_changed = true;
}

void settings_changed(Oid database, Oid role) {
  actions().settings.emplace(database, role);
}

}  // namespace mq::commit_actions
