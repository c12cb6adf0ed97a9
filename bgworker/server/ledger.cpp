#include "ledger.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>
#include <vector>

#include "../channel_key.hpp"
#include "counts.hpp"
#include "extension.hpp"
#include "fence.hpp"
#include "link.hpp"
#include "marks.hpp"
#include "settings.h"
#include "shared.hpp"
#include "spi.hpp"

extern "C" {
#include "commands/async.h"
#include "mb/pg_wchar.h"
#include "utils/fmgrprotos.h"
}

namespace mq::ledger {

namespace {

struct Append {
  LooseChannel channel;
  Uuid predecessor;
};

struct Lease {
  Uuid message;
  Micros leased_at;
  Micros length;
  SubTransactionId subtransaction;  // that it ends with
};

struct ChangeKey {
  Oid relation;
  std::int64_t name_key;
  friend auto operator<=>(const ChangeKey&, const ChangeKey&) = default;
};

// What a subtransaction has inserted and deleted. Those inside it come after it.
struct Frame {
  SubTransactionId subtransaction;
  std::map<ChangeKey, Changed> changes;
};

struct EmptyChannel {
  std::uint64_t mark_key;
  std::int64_t place;
  SubTransactionId subtransaction;
};

struct Ledger {
  std::set<std::string, std::less<>> woken;
  std::unordered_map<std::uint64_t, Position> due;  // the lowest position, by key of the name
  std::vector<Append> appends;
  std::unordered_map<std::int64_t, Uuid> tails;
  AppendLocks append_locks;
  std::vector<Lease> leases;
  std::vector<EmptyChannel> empty_channels;
  std::vector<Frame> frames;
  std::set<Oid> uncounted;  // tables that somebody changed by hand
  bool announced = false;
  bool databases_changed = false;
  std::set<std::pair<Oid, Oid>> settings;  // of database and role that were set
  bool quiet = false;                      // see shared::begin_quiet_commit
};

// Made by the first entry of a transaction, deleted when it ends. A pointer, so that nothing is destroyed at
// exit.
Ledger* open_ledger = nullptr;

// NOTIFY fails when the queue is full, and somebody who listens and stays in a transaction can have it so.
bool has_room_for_notifications() {
  constexpr double kFull = 0.9;
  return fence::call([] { return DatumGetFloat8(DirectFunctionCall1(pg_notification_queue_usage, Datum{0})); }) < kFull;
}

void notify_consumers(Ledger& ledger) {
  if (ledger.woken.empty() || mq_notify == MQ_NOTIFY_OFF) return;
  if (mq_notify == MQ_NOTIFY_AUTO) {
    ledger.quiet = shared::begin_quiet_commit();
    if (ledger.quiet || !has_room_for_notifications()) return;
  }
  for (const std::string& name : ledger.woken) {
    // As LISTEN cuts it, which is an identifier.
    std::string channel = "mq_" + name;
    channel.resize(
        static_cast<std::size_t>(pg_mbcliplen(channel.data(), static_cast<int>(channel.size()), NAMEDATALEN - 1)));
    const char* text = channel.c_str();
    fence::call([&] { Async_Notify(text, ""); });
  }
  fence::call([] { Async_Notify("mq", ""); });
}

// Nobody waits here. Whoever removes a predecessor that we hold waits for the rest of our commit, which waits for
// nobody, and then sees what was appended.
void link_appends(const std::vector<Append>& appends) {
  static Statement lock("SELECT id FROM $S.mq_msgs WHERE id = ANY ($1) FOR KEY SHARE SKIP LOCKED", {UUIDARRAYOID});
  ArrayParam ids(UUIDOID, appends.size());
  for (const Append& append : appends) ids.add(uuid_datum(append.predecessor));
  const Rows rows = lock.run({ids.datum()});
  std::set<Uuid> held;
  for (std::size_t row = 0; row < rows.size(); ++row) held.insert(uuid_of(rows.get(row, 1)));
  std::vector<LooseChannel> loose;
  for (const Append& append : appends)
    if (!held.contains(append.predecessor)) loose.push_back(append.channel);
  link_or_note(loose);
}

// A lease is counted from the poll, but nobody else could have the message before the poll's transaction is
// over. Where that took a good part of the lease, the lease starts again.
void prolong_leases(const std::vector<Lease>& leases) {
  const Micros now = GetCurrentTimestamp();
  ArrayParam ids(UUIDOID);
  ArrayParam ends(TIMESTAMPTZOID);
  for (const Lease& lease : leases) {
    if (now - lease.leased_at <= lease.length / 10) continue;
    ids.add(uuid_datum(lease.message));
    ends.add(TimestampTzGetDatum(now + lease.length));
  }
  static Statement prolong(
      "UPDATE $S.mq_msgs m SET attempt_at = l.lease_end"
      "  FROM unnest($1, $2) AS l (id, lease_end) WHERE m.id = l.id AND m.lease = 0 AND m.attempt_at < l.lease_end",
      {UUIDARRAYOID, TIMESTAMPTZARRAYOID});
  prolong.run({ids.datum(), ends.datum()});
}

// The transaction may have been set READ ONLY after it wrote; what it owes has to be written all the same.
struct WritableScope {
  WritableScope() { XactReadOnly = false; }
  ~WritableScope() { XactReadOnly = saved; }
  WritableScope(const WritableScope&) = delete;
  WritableScope& operator=(const WritableScope&) = delete;
  const bool saved = XactReadOnly;
};

void before_commit(Ledger& ledger) {
  if (!ledger.appends.empty() || !ledger.leases.empty()) {
    if (!Extension::installed()) return;
    fence::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
    {
      const WritableScope writable;
      OwnerScope scope;
      SpiConnection spi;
      if (!ledger.appends.empty()) link_appends(ledger.appends);
      if (!ledger.leases.empty()) prolong_leases(ledger.leases);
    }
    PopActiveSnapshot();
  }
  notify_consumers(ledger);
}

void before_prepare(const Ledger& ledger) {
  if (ledger.appends.empty() || !Extension::installed()) return;
  std::vector<LooseChannel> channels;
  for (const Append& append : ledger.appends) channels.push_back(append.channel);
  fence::call([] { PushActiveSnapshot(GetTransactionSnapshot()); });
  {
    const WritableScope writable;
    OwnerScope scope;
    SpiConnection spi;
    note_loose(channels);
  }
  PopActiveSnapshot();
}

void forget() {
  if (open_ledger->quiet) shared::end_quiet_commit();
  delete open_ledger;
  open_ledger = nullptr;
}

// In COMMIT, when others see what this transaction did.
void pay_counts() {
  for (const Oid relation : open_ledger->uncounted) counts::forget(relation);
  if (open_ledger->frames.empty()) return;
  for (const auto& [key, changed] : open_ledger->frames.front().changes)
    counts::apply({key.relation, key.name_key, changed.rows, changed.ordered, changed.delayed});
}

void transaction_event(XactEvent event, void*) {
  if (open_ledger == nullptr) return;
  switch (event) {
    case XACT_EVENT_PRE_COMMIT:
      fence::guard([] { before_commit(*open_ledger); });
      break;
    case XACT_EVENT_PRE_PREPARE:
      fence::guard([] { before_prepare(*open_ledger); });
      break;
    case XACT_EVENT_COMMIT:
      pay_counts();
      if (open_ledger->databases_changed) shared::look_around();
      for (const auto& [database, role] : open_ledger->settings) shared::renew_workers(database, role);
      if (open_ledger->announced) shared::announce_database(MyDatabaseId);
      for (const auto& [key, position] : open_ledger->due) marks::lower(key, position);
      for (const EmptyChannel& channel : open_ledger->empty_channels)
        marks::channel_was_empty(channel.mark_key, channel.place);
      if (!open_ledger->woken.empty() || open_ledger->announced) shared::wake_workers(MyDatabaseId);
      forget();
      break;
    case XACT_EVENT_ABORT:
    case XACT_EVENT_PREPARE:
      forget();
      break;
    default:
      break;
  }
}

// Allocates nothing: there is nobody here to tell.
void merge_frame(SubTransactionId parent) {
  std::vector<Frame>& frames = open_ledger->frames;
  frames.back().subtransaction = parent;
  if (frames.size() < 2 || frames[frames.size() - 2].subtransaction != parent) return;
  Frame inner = std::move(frames.back());
  frames.pop_back();
  frames.back().changes.merge(inner.changes);
  for (const auto& [key, changed] : inner.changes) {  // those that both have
    Changed& sum = frames.back().changes.find(key)->second;
    sum.rows += changed.rows;
    sum.ordered = sum.ordered || changed.ordered;
    sum.delayed = sum.delayed || changed.delayed;
  }
}

// Of all entries these would do harm if their subtransaction was rolled back: nobody has a leased message, and rows
// were neither inserted nor deleted.
void subtransaction_event(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void*) {
  if (open_ledger == nullptr) return;
  std::vector<Lease>& leases = open_ledger->leases;
  std::vector<EmptyChannel>& empty = open_ledger->empty_channels;
  if (event == SUBXACT_EVENT_ABORT_SUB) {
    std::erase_if(leases, [&](const Lease& lease) { return lease.subtransaction == mine; });
    std::erase_if(empty, [&](const EmptyChannel& channel) { return channel.subtransaction == mine; });
    if (!open_ledger->frames.empty() && open_ledger->frames.back().subtransaction == mine)
      open_ledger->frames.pop_back();
  } else if (event == SUBXACT_EVENT_COMMIT_SUB) {
    if (!open_ledger->frames.empty() && open_ledger->frames.back().subtransaction == mine) merge_frame(parent);
    for (Lease& lease : leases)
      if (lease.subtransaction == mine) lease.subtransaction = parent;
    for (EmptyChannel& channel : empty)
      if (channel.subtransaction == mine) channel.subtransaction = parent;
  }
}

Ledger& ledger() {
  static bool registered = false;
  if (!registered) {
    fence::call([] {
      RegisterXactCallback(transaction_event, nullptr);
      RegisterSubXactCallback(subtransaction_event, nullptr);
    });
    registered = true;
  }
  if (open_ledger == nullptr) open_ledger = new Ledger();
  return *open_ledger;
}

}  // namespace

void wake(std::string_view channel_name) {
  Ledger& l = ledger();
  if (!l.woken.contains(channel_name)) l.woken.emplace(channel_name);
}

void due(std::string_view channel_name, Position position) {
  if (!shared::available()) return;
  const auto [entry, is_new] = ledger().due.try_emplace(marks::key_of(channel_name), position);
  if (!is_new) entry->second = std::min(entry->second, position);
}

std::optional<Position> own_lowest(std::uint64_t name_key) {
  if (open_ledger == nullptr) return std::nullopt;
  const auto found = open_ledger->due.find(name_key);
  return found == open_ledger->due.end() ? std::nullopt : std::optional(found->second);
}

void appended(std::int64_t channel_key, std::string_view channel_name, std::string_view channel_args,
              const Uuid& predecessor) {
  ledger().appends.push_back({{channel_key, std::string(channel_name), std::string(channel_args)}, predecessor});
}

const Uuid* own_tail(std::int64_t channel_key) {
  if (open_ledger == nullptr) return nullptr;
  const auto found = open_ledger->tails.find(channel_key);
  return found == open_ledger->tails.end() ? nullptr : &found->second;
}

void set_own_tail(std::int64_t channel_key, const Uuid& message) {
  ledger().tails[channel_key] = message;
}

AppendLocks& append_locks() {
  return ledger().append_locks;
}

void was_empty(std::uint64_t mark_key, std::int64_t place) {
  if (shared::available()) ledger().empty_channels.push_back({mark_key, place, GetCurrentSubTransactionId()});
}

void leased(const Uuid& message, Micros leased_at, Micros lease) {
  ledger().leases.push_back({message, leased_at, lease, GetCurrentSubTransactionId()});
}

void RowChanges::add(std::string_view channel_name, std::int64_t rows, bool ordered, bool delayed) {
  if (sum_ == nullptr || channel_name != name_) {
    std::vector<Frame>& frames = ledger().frames;
    const SubTransactionId current = GetCurrentSubTransactionId();
    if (frames.empty() || frames.back().subtransaction != current) frames.push_back({current, {}});
    name_ = channel_name;
    sum_ = &frames.back().changes[{relation_, channel_key(channel_name, {})}];
  }
  sum_->rows += rows;
  sum_->ordered = sum_->ordered || ordered;
  sum_->delayed = sum_->delayed || (ordered && delayed);
}

void changed_by_hand(Oid relation) {
  ledger().uncounted.insert(relation);
}

bool has_changed() {
  return open_ledger != nullptr && (!open_ledger->frames.empty() || !open_ledger->uncounted.empty());
}

void announce() {
  ledger().announced = true;
}

void databases_changed() {
  ledger().databases_changed = true;
}

void settings_changed(Oid database, Oid role) {
  ledger().settings.emplace(database, role);
}

}  // namespace mq::ledger
