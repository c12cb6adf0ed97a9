#include "queue/claim.hpp"

#include <algorithm>
#include <iterator>
#include <unordered_set>
#include <utility>

#include "pg/crash_point.hpp"
#include "pg/extension.hpp"
#include "pg/statement.hpp"
#include "queue/cancel_notes.hpp"
#include "queue/cancel_watch.hpp"
#include "queue/claimed_rows.hpp"
#include "queue/due.hpp"
#include "queue/due_scan.hpp"
#include "queue/enabled.hpp"
#include "queue/fairness.hpp"
#include "queue/head_links.hpp"
#include "queue/low_water.hpp"
#include "queue/prerequisites.hpp"
#include "queue/rates.hpp"
#include "queue/running.hpp"
#include "queue/skip_scan.hpp"
#include "queue/undeliverable.hpp"
#include "shmem/rare_writes.hpp"

namespace mq {

namespace {

// After a sample that found nothing new so many claims take none, and none for so long at most.
constexpr int kUnsampled = 4;
constexpr Micros kUnsampledFor = 5'000;
constexpr int kRun = 64;       // messages of an ordered channel that a batch takes together
constexpr int kFairShare = 4;  // one message of so many in a share comes from the fair sample

// Drops from batch[from] on the messages that are in `batch` before, or that a leased call holds.
void drop_repeats(Batch& batch, std::size_t from) {
  std::unordered_set<Uuid, UuidHash> seen;
  for (std::size_t i = 0; i < from; ++i) seen.insert(batch[i].id);
  const auto repeated = [&](const Claimed& message) { return message.held || !seen.insert(message.id).second; };
  batch.erase(std::remove_if(batch.begin() + static_cast<std::ptrdiff_t>(from), batch.end(), repeated), batch.end());
}

bool due_before(const Claimed& a, const Claimed& b) {
  if (a.priority != b.priority) return a.priority > b.priority;
  return a.attempt_at != b.attempt_at ? a.attempt_at < b.attempt_at : a.seq < b.seq;
}

}  // namespace

namespace {

void add_runs(std::span<const Claimed> heads, Micros now, int limit, Batch& batch);

}  // namespace

// A claim that leaves looks to a later one does not look either for messages with a priority that were written by hand.
bool Claimer::heeds_priorities() const {
  static shared::SeenEmpty seen(shared::Rare::kPriorities);
  return look_later_ ? !seen.is_empty([] { return !any_prioritized(); }) : any_prioritized();
}

Claim Claimer::claim(const std::vector<Source>& sources, int limit, bool with_runs) {
  Claim claim;
  if (sources.empty() || limit <= 0) {
    claim.put_off = std::exchange(served_, 0);
    return claim;
  }
  std::vector<std::string_view> names;
  names.reserve(sources.size());
  for (const Source& source : sources) names.push_back(source.channel_name);
  const OwnerScope scope;
  begin(names);
  MQ_CRASH_POINT(claim_begins);
  prioritized_ = heeds_priorities();
  const Micros now = clock_.now();
  const auto start = static_cast<std::size_t>(clock_.random() * static_cast<double>(sources.size()));
  std::vector<Scan> scans;
  scans.reserve(sources.size());
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const Source& source = sources[(start + i) % sources.size()];
    const int most = rates::room(source.channel_name, source.most, now);
    if (most <= 0) {
      if (rates::is_without_memory(source.channel_name) && any_due(source.channel_name, now))
        rates::warn_without_memory(source.channel_name);
      continue;
    }
    Scan& scan = scans.emplace_back(source.channel_name, source.priority, most);
    scan.limited = most < source.most;
    if (prioritized_) scan.level = kAbovePriorities;
  }
  std::stable_sort(scans.begin(), scans.end(), [](const Scan& a, const Scan& b) { return a.priority > b.priority; });

  int room = limit;
  for (auto first = scans.begin(); first != scans.end();) {
    const auto last =
        std::find_if(first, scans.end(), [&](const Scan& scan) { return scan.priority < first->priority; });
    room -= claim_equals({first, last}, room, with_runs, now, claim);
    first = last;
  }
  claim.more_is_due = claim.more_is_due || std::any_of(scans.begin(), scans.end(), [](const Scan& scan) {
                        return scan.more && !(scan.limited && scan.most <= 0);
                      });
  MQ_CRASH_POINT_IF(!claim.messages.empty(), claim_taken);
  claim.put_off = std::exchange(served_, 0) + running::put_off(claim.messages, now, one_by_one_) +
                  rates::put_off(claim.messages, now);
  MQ_CRASH_POINT_IF(!claim.messages.empty(), claim_limited);
  return claim;
}

// Each channel name gets an even share of the room; names with more due messages fill the room that
// is left; followers of ordered heads fill the rest. Where the channels of a name have long runs,
// its share has few heads, so that followers have room; heads fill what they leave.
int Claimer::claim_equals(std::span<Scan> scans, int limit, bool with_runs, Micros now, Claim& claim) {
  int room = limit;
  for (std::size_t i = 0; i < scans.size() && room > 0; ++i) {
    const auto waiting = static_cast<int>(scans.size() - i);
    const int share = (room + waiting - 1) / waiting;
    scans[i].runs = with_runs && long_runs_.contains(scans[i].channel_name);
    room -= take_share(scans[i], scans[i].runs ? (share + kRun - 1) / kRun : share, now);
  }
  for (Scan& scan : scans)
    if (room > 0 && !scan.runs) room -= take_oldest(scan, room, now);
  for (std::size_t i = 0; i < scans.size(); ++i) {
    const auto waiting = static_cast<int>(scans.size() - i);
    const int share = scans[i].runs ? (room + waiting - 1) / waiting : room;
    room -= add_found(scans[i], 0, with_runs ? std::min(share, scans[i].most) : -1, now, claim);
  }
  for (Scan& scan : scans)
    while (room > 0 && scan.runs && scan.more) {
      // As many heads as have room, if no run is longer than those so far.
      const std::size_t before = scan.found.size();
      const int taken = take_oldest(scan, std::max(1, room / scan.longest), now);
      if (taken == 0) break;
      room -= taken;
      room -= add_found(scan, before, std::min(room, scan.most), now, claim);
    }
  claim.messages.reserve(claim.messages.size() + static_cast<std::size_t>(limit - room));
  for (const Scan& scan : scans) claim.messages.insert(claim.messages.end(), scan.ready.begin(), scan.ready.end());
  return limit - room;
}

// Adds scan.found from `from` on to scan.ready, and up to `room` followers (-1: no follower is wanted).
// Returns how many followers.
int Claimer::add_found(Scan& scan, std::size_t from, int room, Micros now, Claim& claim) {
  const auto first = scan.found.begin() + static_cast<std::ptrdiff_t>(from);
  // As the index has them, unless some are from a sample.
  if (!std::is_sorted(first, scan.found.end(), due_before)) std::sort(first, scan.found.end(), due_before);
  const bool plain = std::all_of(first, scan.found.end(), [&](const Claimed& message) {
    return (!message.ordered || room < 0) && is_deliverable(message, now);
  });
  if (plain && !scan.runs) {  // so it is its only part, and has no long runs
    scan.ready = std::move(scan.found);
    return 0;
  }
  Batch heads;
  Batch& deliverable = room < 0 ? scan.ready : heads;
  for (auto message = first; message != scan.found.end(); ++message)
    (is_deliverable(*message, now) ? deliverable : claim.undeliverable).push_back(*message);
  if (room < 0) return 0;
  bool long_runs = false;
  const int added = add_with_runs(heads, room, now, scan, claim, long_runs);
  scan.most -= added;
  const auto known = long_runs_.find(scan.channel_name);
  if (long_runs && known == long_runs_.end())
    long_runs_.emplace(scan.channel_name);
  else if (!long_runs && known != long_runs_.end())
    long_runs_.erase(known);
  return added;
}

// Where the index has no other priority than 0, each scan begins with that and ends with it.
void Claimer::descend(Scan& scan, Micros now) {
  const std::optional<int> below = prioritized_ ? due_priority_below(scan.channel_name, scan.level, now) : std::nullopt;
  scan.behind.reset();
  if (scan.level > 0)
    scan.level = std::max(below.value_or(0), 0);
  else if (below)
    scan.level = *below;
  else
    scan.more = false;
}

// Messages of scan.level, until there are none left; then goes to the next.
int Claimer::take_level(Scan& scan, int limit, Micros now) {
  const std::size_t before = scan.found.size();
  oldest(scan.channel_name, scan.level, now, scan.behind, limit, scan.found);
  const auto got = static_cast<int>(scan.found.size() - before);
  if (got > 0) scan.behind = Position{scan.found.back().attempt_at, scan.found.back().seq};
  drop_repeats(scan.found, before);
  if (got < limit) descend(scan, now);
  const auto taken = static_cast<int>(scan.found.size() - before);
  scan.most -= taken;
  return taken;
}

int Claimer::take_oldest(Scan& scan, int limit, Micros now) {
  int taken = take_above(scan, limit, now);
  limit = std::min(limit, taken + scan.most);
  while (taken < limit && scan.more) taken += take_level(scan, limit - taken, now);
  return taken;
}

int Claimer::take_above(Scan& scan, int limit, Micros now) {
  if (scan.level == kAbovePriorities) descend(scan, now);
  limit = std::min(limit, scan.most);
  int taken = 0;
  while (taken < limit && scan.level > 0) taken += take_level(scan, limit - taken, now);
  return taken;
}

int Claimer::sample(Scan& scan, int limit, Micros now) {
  const std::size_t before = scan.found.size();
  const auto key = static_cast<std::int64_t>((clock_.random() - 0.5) * 18446744073709549568.0);
  fair(scan.channel_name, now, key, std::min(limit, scan.most), scan.found);
  drop_repeats(scan.found, before);
  const auto taken = static_cast<int>(scan.found.size() - before);
  if (taken == 0) unsampled_.emplace(scan.channel_name, Unsampled{kUnsampled, clock_.steady() + kUnsampledFor});
  scan.most -= taken;
  return taken;
}

int Claimer::take_share(Scan& scan, int share, Micros now) {
  share = std::min(share, scan.most);
  const int above = take_above(scan, share, now);
  share -= above;
  if (share == 0) return above;
  // A share of one cannot be divided: at random, half of the time, it is a sample.
  int sampled = share > 1 ? std::max(1, share / kFairShare) : (clock_.random() < 0.5 ? 1 : 0);
  const auto unsampled = unsampled_.find(scan.channel_name);
  if (unsampled != unsampled_.end()) {
    if (clock_.steady() < unsampled->second.until) sampled = 0;
    if (sampled > 0 || --unsampled->second.claims == 0) unsampled_.erase(unsampled);
  }
  if (sampled > 0 && fairness::is_one_channel(scan.channel_name)) sampled = 0;
  int taken = take_oldest(scan, share - sampled, now);
  if (sampled > 0 && scan.level == 0 && scan.more) taken += sample(scan, sampled, now);
  // The sample may find messages that are among the oldest: then more of the oldest fill its part.
  return above + taken + take_oldest(scan, share - taken, now);
}

// Followers go right behind their head. They end before the first one that cannot be delivered.
int Claimer::add_with_runs(const Batch& heads, int room, Micros now, Scan& scan, Claim& claim, bool& long_runs) {
  Batch ordered;
  std::copy_if(heads.begin(), heads.end(), std::back_inserter(ordered),
               [](const Claimed& message) { return message.ordered; });
  Batch runs;
  int length = 0;  // the most followers of one head
  if (room > 0 && !ordered.empty()) {
    if (ordered.size() > static_cast<std::size_t>(room)) ordered.resize(static_cast<std::size_t>(room));
    length = room / static_cast<int>(ordered.size());
    add_runs(ordered, now, length, runs);
  }
  // With too little room to look there may be followers as well as not.
  long_runs = length < kRun - 1 && !ordered.empty();
  int added = 0;
  auto next = runs.begin();
  for (const Claimed& head : heads) {
    scan.ready.push_back(head);
    if (!head.ordered) continue;
    int of_head = 0;
    bool broken = false;
    for (; next != runs.end() && same_channel(*next, head); ++next) {
      broken = broken || !is_deliverable(*next, now);
      if (broken) continue;
      scan.ready.push_back(*next);
      ++of_head;
    }
    scan.longest = std::max(scan.longest, 1 + of_head);
    if (length > 0 && of_head == length) {
      long_runs = true;
      claim.more_is_due = claim.more_is_due || !scan.limited;
    }
    added += of_head;
  }
  return added;
}

namespace {

#define LOCKED "FOR $L OF m SKIP LOCKED"

constexpr int kProbes = 4;  // channels that a fair sample tries for each message that it may take
// About what a message of a sample takes in memory. A sample that takes longer has fewer messages,
// but not fewer than kLeastSample.
constexpr Micros kSampleTime = 3;
constexpr int kLeastSample = 4;

}  // namespace

void Claimer::begin(std::span<const std::string_view> channel_names) {
  names_.assign(channel_names.begin(), channel_names.end());
  const OwnerScope scope;
  CancelWatch::begin_claim();
  cancel_notes::begin_claim();
  if (look_later_) return;
  left_notes_ = false;
  low_water::begin_claim(channel_names);
  if (!enabled::here()) return;
  left_notes_ = link_headless();
  served_ += running::serve(channel_names, one_by_one_);
  left_notes_ = prerequisites::recheck() || left_notes_;
}

namespace {

#define DUE(from, condition)                                                                                   \
  "SELECT " CLAIMED_COLUMNS                                                                                    \
  " FROM $S.mq_msgs m"                                                                                         \
  " WHERE m.channel_name = $1 AND m.attempt_at <= $2 AND $H AND " condition " AND (m.attempt_at, m.seq) " from \
  " ($4, $5)"                                                                                                  \
  " ORDER BY m.attempt_at, m.seq LIMIT $3 " LOCKED
#define DUE_TYPES \
  { TEXTOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID, INT8OID, INT2OID }
// The conditions of mq_msgs_due and mq_msgs_priority.
#define ORDINARY "m.priority = 0"
#define PRIORITIZED "m.priority = $6 AND m.priority <> 0"
#define DELIVERABLE " AND m.attempts > 0 AND m.commit_interval IS NULL AND (m.expires_at IS NULL OR m.expires_at > $2)"

Rows run_due(Statement& statement, Datum name, int priority, Micros now, Position from, int limit) {
  return statement.run({name, TimestampTzGetDatum(now), Int64GetDatum(limit), TimestampTzGetDatum(from.attempt_at),
                        Int64GetDatum(from.seq), Int16GetDatum(static_cast<std::int16_t>(priority))});
}

// The due heads from a position on, or only those `behind` it, by a query.
Rows query_due(Datum name, int priority, Micros now, Position from, bool behind, int limit) {
  static Statement first(DUE(">=", ORDINARY), DUE_TYPES);
  static Statement more(DUE(">", ORDINARY), DUE_TYPES);
  static Statement prioritized_first(DUE(">=", PRIORITIZED), DUE_TYPES);
  static Statement prioritized_more(DUE(">", PRIORITIZED), DUE_TYPES);
  Statement& statement = priority == 0 ? (behind ? more : first) : (behind ? prioritized_more : prioritized_first);
  return run_due(statement, name, priority, now, from, limit);
}

// Those of them that can be delivered.
Rows query_deliverable(Datum name, int priority, Micros now, Position behind, int limit) {
  static Statement deliverable(DUE(">", ORDINARY DELIVERABLE), DUE_TYPES);
  static Statement prioritized(DUE(">", PRIORITIZED DELIVERABLE), DUE_TYPES);
  return run_due(priority == 0 ? deliverable : prioritized, name, priority, now, behind, limit);
}

}  // namespace

void Claimer::oldest(std::string_view channel_name, int priority, Micros now, std::optional<Position> after, int limit,
                     Batch& batch) {
  const Datum name = text_datum(channel_name);
  const std::size_t before = batch.size();
  if (undeliverable_left_) {
    append(query_deliverable(name, priority, now, after.value_or(low_water::kNone), limit), batch);
  } else {
    const auto raise = after ? std::nullopt : low_water::to_raise(channel_name, priority);
    const Position from = after.value_or(low_water::start(channel_name, priority));
    if (const auto due = lock_due(name, priority, now, from, after.has_value(), limit, unlocked_)) {
      batch.reserve(before + due->rows.size());
      for (const LockedRow& row : due->rows) append(row, batch);
      if (raise) low_water::raise(*raise, due->first.value_or(Position{now, INT64_MIN}));
    } else {
      append(query_due(name, priority, now, from, after.has_value(), limit), batch);
    }
  }
  low_water::taken(channel_name, priority, static_cast<int>(batch.size() - before));
}

namespace {

Rows query_sample(Datum name, const std::vector<std::int64_t>& keys, Micros now, Position from, int limit) {
  static Statement sample(
      "SELECT c.* FROM unnest($3) AS k (key) CROSS JOIN LATERAL ("
      "  SELECT " CLAIMED_COLUMNS
      " FROM $S.mq_msgs m"
      "   WHERE m.channel_name = $1 AND m.channel_key = k.key AND m.attempt_at <= $2 AND m.fair AND m.priority = 0 AND "
      "$H"
      " AND (m.attempt_at, m.seq) >= ($5, $6)"
      "   ORDER BY m.attempt_at, m.seq LIMIT 1 " LOCKED ") c LIMIT $4",
      {TEXTOID, TIMESTAMPTZOID, INT8ARRAYOID, INT8OID, TIMESTAMPTZOID, INT8OID});
  ArrayParam array(INT8OID, keys.size());
  for (const std::int64_t key : keys) array.add(Int64GetDatum(key));
  return sample.run({name, TimestampTzGetDatum(now), array.datum(), Int64GetDatum(limit),
                     TimestampTzGetDatum(from.attempt_at), Int64GetDatum(from.seq)});
}

}  // namespace

void Claimer::fair(std::string_view channel_name, Micros now, std::int64_t start, int limit, Batch& batch) {
  if (undeliverable_left_ || limit <= 0) return;
  const Position from = low_water::start(channel_name, 0);
  const std::size_t before = batch.size();
  const Datum name = text_datum(channel_name);
  Effort effort(clock_, kSampleTime * limit, std::min(kLeastSample, limit), limit);
  if (const auto rows = lock_sample(name, start, now, from, limit * kProbes, effort)) {
    for (const LockedRow& row : *rows) append(row, batch);
  } else {
    const std::vector<std::int64_t> keys = fair_keys(channel_name, from, start, limit * kProbes);
    if (!keys.empty()) append(query_sample(name, keys, now, from, limit), batch);
  }
  low_water::taken(channel_name, 0, static_cast<int>(batch.size() - before));
}

namespace {

// The messages behind each head, by a query; not only those up to the first gap.
Rows query_runs(std::span<const Claimed> heads, Micros now, int limit) {
  static Statement run(
      "SELECT c.* FROM unnest($1, $2, $3, $4) WITH ORDINALITY AS h (key, name, args, seq, n)"
      " CROSS JOIN LATERAL ("
      "  SELECT " CLAIMED_COLUMNS
      " FROM $S.mq_msgs m"
      "   WHERE m.channel_key = h.key AND m.seq > h.seq AND m.after_message_id IS NOT NULL"
      "     AND m.channel_name = h.name AND m.channel_args = h.args"
      "   ORDER BY m.seq LIMIT $6 " LOCKED
      ") c"
      " WHERE c.attempt_at <= $5",
      {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INT8ARRAYOID, TIMESTAMPTZOID, INT8OID});
  ArrayParam keys(INT8OID, heads.size());
  ArrayParam names(TEXTOID, heads.size());
  ArrayParam args(TEXTOID, heads.size());
  ArrayParam numbers(INT8OID, heads.size());
  for (const Claimed& head : heads) {
    keys.add(Int64GetDatum(head.channel_key));
    names.add(text_datum(head.channel_name));
    args.add(text_datum(head.channel_args));
    numbers.add(Int64GetDatum(head.seq));
  }
  return run.run(
      {keys.datum(), names.datum(), args.datum(), numbers.datum(), TimestampTzGetDatum(now), Int64GetDatum(limit)});
}

}  // namespace

namespace {

// The due messages behind each head in its channel, up to the first gap; at most `limit` a head.
void add_runs(std::span<const Claimed> heads, Micros now, int limit, Batch& batch) {
  Batch found;
  std::vector<ChainSearch> searches;
  searches.reserve(heads.size());
  for (const Claimed& head : heads)
    searches.push_back(
        {head.channel_key, head.seq, text_datum(head.channel_name), text_datum(head.channel_args), head.id});
  if (const auto runs = lock_runs(searches, now, limit))
    for (const LockedRow& row : *runs) append(row, found);
  else
    append(query_runs(heads, now, limit), found);

  // Followers end at the first gap: a message that is not due, or that another session has locked.
  const Claimed* previous = nullptr;
  auto head = heads.begin();
  for (const Claimed& message : found) {
    if (previous == nullptr || !same_channel(*previous, message)) {
      while (head != heads.end() && !same_channel(*head, message)) ++head;
      if (head == heads.end()) break;
      previous = &*head;
    }
    if (message.after != previous->id) continue;
    batch.push_back(message);
    previous = &message;
  }
}

}  // namespace

bool Claimer::overlooked() {
  const OwnerScope scope;
  const std::vector<std::string_view> names(names_.begin(), names_.end());
  return low_water::check(names);
}

}  // namespace mq
