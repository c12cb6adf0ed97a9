#include "queue/low_water.hpp"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pg/extension.hpp"
#include "pg/lwlock.hpp"
#include "pg/settings.h"
#include "queue/commit_actions.hpp"
#include "queue/due_scan.hpp"
#include "queue/skip_scan.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/layout.hpp"

namespace mq::low_water {

namespace {

using shared::state;

constexpr int kStep = 2000;                // index entries that a step of a check reads at most
constexpr Micros kCheap = kSecond / 1000;  // so much of a search before a wait does not count

// The set of a table that has room for a key, locked while this lives.
class LockedSet {
 public:
  LockedSet(std::uint64_t key, LWLockMode mode) : LockedSet(state->name_marks, key, mode) {}
  LockedSet(LowWaterMarks* table, std::uint64_t key, LWLockMode mode)
      : set_(table[key % shared::kMarkSets]), lock_(&state->mark_locks[key % shared::kMarkLocks].lock, mode) {}
  LowWaterMarks* operator->() const { return &set_; }

 private:
  LowWaterMarks& set_;
  const LightweightLock lock_;
};

// Half mq.poll_interval, so that no message is hidden for longer than the whole. In µs.
Micros check_interval() {
  return Micros{mq_poll_interval} * 1000 / 2;
}

bool has_written() {
  return TransactionIdIsValid(GetTopTransactionIdIfAny());
}

// Where the name is to be searched from, if its last check is at least `interval` µs ago.
// begin_check() keeps other sessions from the same search.
std::optional<Position> begin_search(std::uint64_t key, Micros now, Micros interval) {
  const LockedSet set(key, LW_EXCLUSIVE);
  return set->begin_check(key, now, interval);
}

// What the search of a name that began at `now` has done.
struct Searched {
  bool goes_on = false;  // in a further step
  bool lowered = false;  // the mark was too high
};
Searched end_search(std::uint64_t key, const HeadSearch& result, Micros now, Micros took) {
  const LockedSet set(key, LW_EXCLUSIVE);
  // A mark beyond the present would hide a row that a user inserts by hand later.
  if (result.ended) return {false, set->end_check(key, took, std::min(result.reached, {now, INT64_MIN}))};
  return {set->end_step(key, took, result.reached), false};
}

// Each of the names with priority 0, and with each other one that the index has entries of.
std::vector<std::pair<std::string_view, int>> with_priorities(std::span<const std::string_view> channel_names) {
  std::vector<std::pair<std::string_view, int>> all;
  const bool any = any_prioritized();
  for (const std::string_view name : channel_names) {
    all.emplace_back(name, 0);
    if (any)
      for (const Level& level : levels_of(name)) all.emplace_back(name, level.priority);
  }
  return all;
}

// Searches from the beginning for the names whose last check is at least `interval` µs ago. `step`:
// how many index entries to read at most; the next step goes on there. Without it each search goes
// to its end. True: some mark was too high.
bool search_all(std::span<const std::string_view> channel_names, Micros interval, std::optional<int> step) {
  struct Search {
    std::uint64_t key;
    HeadSearch result;
  };
  std::vector<Search> searches;
  const Micros now = GetCurrentTimestamp();
  for (const auto& [name, priority] : with_priorities(channel_names)) {
    const std::uint64_t key = key_of(name, priority);
    const std::optional<Position> from = begin_search(key, now, interval);
    if (!from) continue;
    const HeadSearch result =
        step ? search_head(name, priority, *from, *step) : HeadSearch{true, first_head(name, priority, kNone), 0};
    searches.push_back({key, result});
    if (step && (*step -= result.read) <= 0) break;
  }
  if (searches.empty()) return false;
  const Micros took = GetCurrentTimestamp() - now;
  bool lowered = false;
  for (const auto& [key, result] : searches) lowered = end_search(key, result, now, took).lowered || lowered;
  return lowered;
}

}  // namespace

std::uint64_t key_of(std::string_view channel_name) {
  if (!shared::available()) return 0;
  const std::uint64_t extension = std::uint64_t{MyDatabaseId} << 32 | Extension::get().oid();
  return seeded_key(channel_name, state->mark_seed ^ extension);
}

std::uint64_t key_of(std::string_view channel_name, int priority) {
  const std::uint64_t key = key_of(channel_name);
  return priority == 0 || key == 0 ? key : seeded_key(std::to_string(priority), key);
}

Position start(std::string_view channel_name, int priority) {
  if (!shared::available()) return kNone;
  const std::uint64_t key = key_of(channel_name, priority);
  std::optional<Position> mark;
  {
    const LockedSet set(key, LW_SHARED);
    mark = set->look(key).mark;
  }
  // Messages that this transaction made due lower the mark only at its commit.
  return mark ? std::min(*mark, commit_actions::own_lowest(key).value_or(*mark)) : kNone;
}

void taken(std::string_view channel_name, int priority, int messages) {
  if (!shared::available() || messages == 0) return;
  const std::uint64_t key = key_of(channel_name, priority);
  const LockedSet set(key, LW_EXCLUSIVE);
  set->taken(key, messages);
}

void begin_claim(std::span<const std::string_view> channel_names) {
  // When this process's last step ended, and how long it took. Only this function sets them.
  static Micros ended = 0;
  static Micros took = 0;
  if (!shared::available()) return;
  const Micros now = GetCurrentTimestamp();
  if (now >= ended && now - ended < took * LowWaterMarks::kCheckShare) return;
  search_all(channel_names, check_interval(), kStep);
  ended = GetCurrentTimestamp();
  took = ended - now;
}

void begin_wait(std::span<const std::string_view> channel_names, const std::function<bool()>& is_wanted) {
  // When a search of this process was last broken off, and how long it took. Only this function sets
  // them. A search that comes to its end has its pause in shared memory (begin_check()).
  static Micros ended = 0;
  static Micros took = 0;
  if (!shared::available()) return;
  const Micros began = GetCurrentTimestamp();
  if (began >= ended && began - ended < (took - kCheap) * LowWaterMarks::kCheckShare) return;
  took = 0;
  for (const auto& [name, priority] : with_priorities(channel_names)) {
    const std::uint64_t key = key_of(name, priority);
    std::optional<Position> from = begin_search(key, began, check_interval());
    while (from) {
      const HeadSearch result = search_head(name, priority, *from, kStep);
      const Micros now = GetCurrentTimestamp();
      const bool goes_on = end_search(key, result, began, now - began).goes_on;
      if (is_wanted()) {
        ended = now;
        took = now - began;
        return;
      }
      from = goes_on ? std::optional(result.reached) : std::nullopt;
    }
  }
}

std::optional<ToRaise> to_raise(std::string_view channel_name, int priority) {
  if (!shared::available() || has_written()) return std::nullopt;
  const std::uint64_t key = key_of(channel_name, priority);
  const LockedSet set(key, LW_SHARED);
  const LowWaterMarks::Look look = set->look(key);
  return look.raise ? std::optional(ToRaise{key, look.ticket}) : std::nullopt;
}

void raise(const ToRaise& name, Position first) {
  const LockedSet set(name.key, LW_EXCLUSIVE);
  set->raise(name.key, name.ticket, first, GetCurrentTimestamp());
}

bool check(std::span<const std::string_view> channel_names) {
  return shared::available() && search_all(channel_names, 0, std::nullopt);
}

void lower(std::uint64_t key, Position position) {
  if (!shared::available()) return;
  const LockedSet set(key, LW_EXCLUSIVE);
  set->lower(key, position);
}

// The marks of ordered channels have attempt_at 0 in all positions.

std::uint64_t key_of(std::string_view channel_name, std::string_view channel_args) {
  return seeded_key(channel_args, key_of(channel_name));
}

std::int64_t channel_start(std::uint64_t key) {
  if (!shared::available()) return kFirstSeq;
  const LockedSet set(state->channel_marks, key, LW_SHARED);
  const std::optional<Position> mark = set->look(key).mark;
  return mark ? mark->seq : kFirstSeq;
}

bool begin_channel_check(std::uint64_t key) {
  if (!shared::available()) return false;
  const LockedSet set(state->channel_marks, key, LW_EXCLUSIVE);
  return set->begin_check(key, GetCurrentTimestamp(), check_interval()).has_value();
}

void end_channel_check(std::uint64_t key, Micros took, std::optional<std::int64_t> tail) {
  const LockedSet set(state->channel_marks, key, LW_EXCLUSIVE);
  set->end_check(key, took, {0, tail.value_or(INT64_MAX)});
}

void channel_was_empty(std::uint64_t key, std::int64_t seq) {
  if (!shared::available()) return;
  const LockedSet set(state->channel_marks, key, LW_EXCLUSIVE);
  set->taken(key, 1);
  set->raise(key, set->look(key).ticket, {0, seq}, GetCurrentTimestamp());
}

}  // namespace mq::low_water
