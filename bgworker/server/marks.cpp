#include "marks.hpp"

#include <algorithm>
#include <optional>
#include <vector>

#include "../channel_key.hpp"
#include "extension.hpp"
#include "ledger.hpp"
#include "settings.h"
#include "shared_state.hpp"
#include "spi.hpp"

namespace mq::marks {

namespace {

using shared::state;

// The set of a table that a key falls into, locked.
class LockedSet {
 public:
  LockedSet(std::uint64_t key, LWLockMode mode) : LockedSet(state->name_marks, key, mode) {}
  LockedSet(MarkSet* table, std::uint64_t key, LWLockMode mode)
      : set_(table[key % shared::kMarkSets]), lock_(&state->mark_locks[key % shared::kMarkLocks].lock) {
    LWLockAcquire(lock_, mode);
  }
  ~LockedSet() { LWLockRelease(lock_); }
  LockedSet(const LockedSet&) = delete;
  LockedSet& operator=(const LockedSet&) = delete;
  MarkSet* operator->() const { return &set_; }

 private:
  MarkSet& set_;
  LWLock* lock_;
};

// A name whose first message is looked for.
struct Search {
  std::string_view name;
  std::uint64_t key;
  MarkSet::Ticket ticket;
  Position from;
  Position first = {};
};

// Fills in the first message from `from` on, whoever has locked it; where there is none, the time of the search.
void find_first(std::vector<Search>& searches) {
  static Statement find(
      "SELECT n.n::int4, f.attempt_at, f.place FROM unnest($1, $2, $3) WITH ORDINALITY AS n (name, attempt_at, place, "
      "n)"
      " CROSS JOIN LATERAL (SELECT m.attempt_at, m.place FROM $S.mq_msgs m"
      "   WHERE m.channel_name = n.name AND (m.attempt_at, m.place) >= (n.attempt_at, n.place)"
      "     AND (m.after_message_id IS NULL OR m.after_message_id = '00000000-0000-0000-0000-000000000000')"
      "   ORDER BY m.attempt_at, m.place LIMIT 1) f",
      {TEXTARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID});
  ArrayParam names(TEXTOID), times(TIMESTAMPTZOID), places(INT8OID);
  // Not beyond the present, so that a row that is written by hand is found where it is not older than that.
  const Position now{GetCurrentTimestamp(), INT64_MIN};
  for (Search& search : searches) {
    names.add(text_datum(search.name));
    times.add(TimestampTzGetDatum(search.from.attempt_at));
    places.add(Int64GetDatum(search.from.place));
    search.first = now;
  }
  const Rows rows = find.run({names.datum(), times.datum(), places.datum()});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Search& search = searches[static_cast<std::size_t>(DatumGetInt32(rows.get(i, 1)) - 1)];
    search.first = std::min(now, {DatumGetTimestampTz(rows.get(i, 2)), DatumGetInt64(rows.get(i, 3))});
  }
}

// Half the poll interval, so that nothing is hidden for longer than that.
Micros check_interval() {
  return Micros{mq_poll_interval} * 1000 / 2;
}

bool has_written() {
  return TransactionIdIsValid(GetTopTransactionIdIfAny());
}

// From the beginning, and so that whoever comes now leaves it.
bool search_all(std::span<const std::string_view> channel_names, Micros interval) {
  std::vector<Search> searches;
  const Micros now = GetCurrentTimestamp();
  for (const std::string_view name : channel_names) {
    const std::uint64_t key = key_of(name);
    const LockedSet set(key, LW_EXCLUSIVE);
    if (set->begin_check(key, now, interval)) searches.push_back({name, key, set->look(key).ticket, kNone});
  }
  if (searches.empty()) return false;
  find_first(searches);
  const Micros took = GetCurrentTimestamp() - now;
  bool lowered = false;
  for (const Search& search : searches) {
    const LockedSet set(search.key, LW_EXCLUSIVE);
    lowered = set->end_check(search.key, took, search.first) || lowered;
  }
  return lowered;
}

}  // namespace

std::uint64_t key_of(std::string_view channel_name) {
  if (!shared::available()) return 0;
  const std::uint64_t extension = std::uint64_t{MyDatabaseId} << 32 | Extension::get().oid();
  return seeded_key(channel_name, state->mark_seed ^ extension);
}

Position start(std::string_view channel_name) {
  if (!shared::available()) return kNone;
  const std::uint64_t key = key_of(channel_name);
  std::optional<Position> mark;
  {
    const LockedSet set(key, LW_SHARED);
    mark = set->look(key).mark;
  }
  // What this transaction has made due itself lowers the mark only at its commit.
  return mark ? std::min(*mark, ledger::own_lowest(key).value_or(*mark)) : kNone;
}

void taken(std::string_view channel_name, int messages) {
  if (!shared::available() || messages == 0) return;
  const std::uint64_t key = key_of(channel_name);
  const LockedSet set(key, LW_EXCLUSIVE);
  set->taken(key, messages);
}

void raise(std::span<const std::string_view> channel_names) {
  if (!shared::available()) return;
  search_all(channel_names, check_interval());
  if (has_written()) return;
  std::vector<Search> searches;
  for (const std::string_view name : channel_names) {
    const std::uint64_t key = key_of(name);
    const LockedSet set(key, LW_SHARED);
    const MarkSet::Look look = set->look(key);
    if (look.raise) searches.push_back({name, key, look.ticket, look.mark.value_or(kNone)});
  }
  if (searches.empty()) return;
  const Micros now = GetCurrentTimestamp();
  find_first(searches);
  for (const Search& search : searches) {
    const LockedSet set(search.key, LW_EXCLUSIVE);
    set->raise(search.key, search.ticket, search.first, now);
  }
}

bool check(std::span<const std::string_view> channel_names) {
  return shared::available() && search_all(channel_names, 0);
}

void lower(std::uint64_t key, Position position) {
  if (!shared::available()) return;
  const LockedSet set(key, LW_EXCLUSIVE);
  set->lower(key, position);
}

// Positions in a channel have no time.

std::uint64_t key_of(std::string_view channel_name, std::string_view channel_args) {
  return seeded_key(channel_args, key_of(channel_name));
}

std::int64_t channel_start(std::uint64_t key) {
  if (!shared::available()) return kFirstPlace;
  const LockedSet set(state->channel_marks, key, LW_SHARED);
  const std::optional<Position> mark = set->look(key).mark;
  return mark ? mark->place : kFirstPlace;
}

bool begin_channel_check(std::uint64_t key) {
  if (!shared::available()) return false;
  const LockedSet set(state->channel_marks, key, LW_EXCLUSIVE);
  return set->begin_check(key, GetCurrentTimestamp(), check_interval());
}

void end_channel_check(std::uint64_t key, Micros took, std::optional<std::int64_t> tail) {
  const LockedSet set(state->channel_marks, key, LW_EXCLUSIVE);
  set->end_check(key, took, {0, tail.value_or(INT64_MAX)});
}

void channel_was_empty(std::uint64_t key, std::int64_t place) {
  if (!shared::available()) return;
  const LockedSet set(state->channel_marks, key, LW_EXCLUSIVE);
  set->taken(key, 1);
  set->raise(key, set->look(key).ticket, {0, place}, GetCurrentTimestamp());
}

}  // namespace mq::marks
