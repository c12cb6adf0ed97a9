#include "stats/channel_counts.hpp"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "pg/extension.hpp"
#include "pg/statement.hpp"
#include "shmem/activity.hpp"
#include "shmem/channel_key.hpp"
#include "stats/heads.hpp"
#include "stats/row_counts.hpp"

namespace mq::channel_counts {

namespace {

constexpr std::int64_t kRoom = 20'000;     // rows of large channels that a look counts to divide them
constexpr Micros kRefresh = kSecond / 50;  // a look drops no stale sum after that

// Numbers of messages of some kind, by channel name.
using ByName = std::map<std::string, std::int64_t, std::less<>>;

ByName by_name(Statement& statement, Micros now) {
  const Rows rows = statement.run({TimestampTzGetDatum(now)});
  ByName result;
  for (std::size_t i = 0; i < rows.size(); ++i)
    result.emplace(text_view(rows.get(i, 1)), DatumGetInt64(rows.get(i, 2)));
  return result;
}

ByName leased(Micros now) {
  static Statement select(
      "SELECT m.channel_name, count(*) FROM $S.mq_msgs m WHERE m.lease IS NOT NULL AND m.attempt_at > $1 GROUP BY "
      "m.channel_name",
      {TIMESTAMPTZOID});
  return by_name(select, now);
}

// Heads that are due, but that the sweep will remove.
ByName exhausted(Micros now) {
  // $H stands outside of the OFFSET 0: inside, the planner might search all heads for them.
  static Statement select(
      "SELECT m.channel_name, count(*) FROM ("
      "   SELECT s.channel_name, s.after_message_id FROM $S.mq_msgs s"
      "    WHERE (s.commit_interval IS NOT NULL OR s.attempts <= 0) AND s.attempt_at <= $1"
      "   UNION ALL"
      "   SELECT e.channel_name, e.after_message_id FROM $S.mq_msgs e"
      "    WHERE e.expires_at <= $1 AND e.commit_interval IS NULL AND e.attempts > 0 AND e.attempt_at <= $1"
      "   OFFSET 0) m WHERE $H GROUP BY m.channel_name",
      {TIMESTAMPTZOID});
  return by_name(select, now);
}

// Dead messages that block their channels.
struct Blocking {
  ByName all;
  ByName behind;  // those that are not the head of their ordered channel
};

Blocking blocking() {
  static Statement select(
      "SELECT m.channel_name, count(*), count(*) FILTER (WHERE m.after_message_id <> $N) FROM $S.mq_msgs m"
      " WHERE m.attempts <= 0 AND m.attempt_at IS NULL GROUP BY m.channel_name",
      {});
  const Rows rows = select.run({});
  Blocking result;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::string_view name = text_view(rows.get(i, 1));
    result.all.emplace(name, DatumGetInt64(rows.get(i, 2)));
    result.behind.emplace(name, DatumGetInt64(rows.get(i, 3)));
  }
  return result;
}

std::int64_t of(const ByName& by_name, std::string_view name) {
  const auto found = by_name.find(name);
  return found == by_name.end() ? 0 : found->second;
}

bool any_behind_others() {
  static Statement select("SELECT EXISTS (SELECT FROM $S.mq_msgs m WHERE m.after_message_id IS NOT NULL)", {});
  return DatumGetBool(select.run({}).get(0, 1));
}

// The messages behind the heads of ordered channels.
struct Followers {
  std::int64_t ready = 0;   // due, as are the head and all between
  std::int64_t late = 0;    // behind a due head, but not due, or behind a follower that is not
  std::int64_t behind = 0;  // behind a head that is not due
  std::int64_t dead = 0;    // block the messages behind them, and count as dead alone
  std::int64_t all() const { return ready + late + behind + dead; }
  bool small() const { return all() <= kSmall; }
};

// Reads each message behind each head, with whether all followers up to it are due. The heads are
// read one after the other, so LIMIT ends the scan early.
#define FOLLOWERS(heads)                                                                                        \
  "SELECT count(*) FILTER (WHERE NOT r.dead AND r.head_due AND r.due),"                                         \
  "       count(*) FILTER (WHERE NOT r.dead AND r.head_due AND NOT r.due),"                                     \
  "       count(*) FILTER (WHERE NOT r.dead AND NOT r.head_due), count(*) FILTER (WHERE r.dead) FROM ("         \
  "  SELECT h.due AS head_due, f.due, f.dead FROM (" heads                                                      \
  ") AS h CROSS JOIN LATERAL ("                                                                                 \
  "    SELECT bool_and(m.attempt_at <= $2 AND m.commit_interval IS NULL AND m.attempts > 0"                     \
  "                      AND (m.expires_at IS NULL OR m.expires_at > $2))"                                      \
  "             OVER (ORDER BY m.seq ROWS UNBOUNDED PRECEDING) AS due, m.attempt_at IS NULL AS dead"            \
  "      FROM $S.mq_msgs m WHERE m.channel_key = h.channel_key AND m.seq > h.seq"                               \
  "       AND m.after_message_id IS NOT NULL AND m.channel_name = $1 AND m.channel_args = h.channel_args) AS f" \
  "  LIMIT $3) AS r"
#define HEADS(due, condition)                                                                 \
  "(SELECT m.channel_key, m.channel_args, m.seq, " due                                        \
  " AS due FROM $S.mq_msgs m"                                                                 \
  "  WHERE m.channel_name = $1 AND m.after_message_id = $N AND m.priority = 0 AND " condition \
  " ORDER BY m.attempt_at)"

Followers followers(Statement& statement, std::string_view name, Micros now, const Param& limit, Snapshot snapshot) {
  const Rows rows = statement.run({text_datum(name), TimestampTzGetDatum(now), limit}, snapshot);
  return {DatumGetInt64(rows.get(0, 1)), DatumGetInt64(rows.get(0, 2)), DatumGetInt64(rows.get(0, 3)),
          DatumGetInt64(rows.get(0, 4))};
}

Followers followers_of_all(std::string_view name, Micros now, const Param& limit, Snapshot snapshot = nullptr) {
  static Statement select(FOLLOWERS(HEADS("COALESCE(m.attempt_at <= $2, false)", "true")),
                          {TEXTOID, TIMESTAMPTZOID, INT8OID});
  return followers(select, name, now, limit, snapshot);
}

// The followers of heads that are not due, or dead.
Followers followers_of_later(std::string_view name, Micros now, std::int64_t limit) {
  static Statement select(
      FOLLOWERS(HEADS("false", "m.attempt_at > $2") " UNION ALL " HEADS("false", "m.attempt_at IS NULL")),
      {TEXTOID, TIMESTAMPTZOID, INT8OID});
  return followers(select, name, now, Int64GetDatum(limit), nullptr);
}

// The messages of ordered channels that have no head at the moment, `limit` at most.
std::int64_t headless(std::string_view name, const Param& limit, Snapshot snapshot = nullptr) {
  static Statement select(
      "SELECT count(*) FROM (SELECT 1"
      "   FROM (SELECT DISTINCT n.channel_key, n.channel_args FROM $S.mq_headless n WHERE n.channel_name = $1) AS l"
      "   JOIN $S.mq_msgs m ON m.channel_key = l.channel_key AND m.after_message_id IS NOT NULL"
      "    AND m.channel_name = $1 AND m.channel_args = l.channel_args"
      "  WHERE NOT EXISTS (SELECT 1 FROM $S.mq_msgs h WHERE h.channel_key = l.channel_key AND h.after_message_id = $N"
      "                       AND h.channel_name = $1 AND h.channel_args = l.channel_args)"
      "  LIMIT $2) AS r",
      {TEXTOID, INT8OID});
  return DatumGetInt64(select.run({text_datum(name), limit}, snapshot).get(0, 1));
}

// Counts every row of a channel name, and leaves the sum in the row counts for the next look. `own`: as Recount
// has it. `kept`: whether the sum is left there.
row_counts::Counted count_all(std::string_view name, Micros now, bool ordered, bool cached, std::int64_t own = 0,
                              bool* kept = nullptr) {
  static Statement heads(
      "SELECT count(*) FILTER (WHERE m.attempt_at <= $2), count(*) FILTER (WHERE m.attempt_at > $2), count(*)"
      "  FROM $S.mq_heads m WHERE m.channel_name = $1",
      {TEXTOID, TIMESTAMPTZOID});
  row_counts::Recount recount(Extension::msgs(), channel_key(name, {}), cached, own);
  if (kept != nullptr) *kept = recount.published();
  const Rows rows = heads.run({text_datum(name), TimestampTzGetDatum(now)}, recount.snapshot());
  Followers behind;
  std::int64_t lost = 0;
  if (ordered) {
    behind = followers_of_all(name, now, Param(), recount.snapshot());
    lost = headless(name, Param(), recount.snapshot());
    behind.behind += lost;
  }
  row_counts::Counted counted;
  counted.rows = DatumGetInt64(rows.get(0, 3)) + behind.all();
  counted.ready = DatumGetInt64(rows.get(0, 1)) + behind.ready;
  counted.scheduled = DatumGetInt64(rows.get(0, 2)) + behind.late + behind.behind;
  counted.late = behind.late + std::min<std::int64_t>(lost, 1);  // Split looks for no heads of those
  counted.ordered = behind.all() > 0;
  recount.finish(counted);
  return counted;
}

// Divides the rows of a channel name, whose number is known, into ready and scheduled. Counts up to
// `room` rows for that (at least kSmall), and subtracts what it counted from `room`.
class Split {
 public:
  Split(const Look& look, std::int64_t blocked, std::int64_t blocked_behind, Micros now, std::int64_t& room)
      : look_(look),
        known_(*look.known),
        rows_(known_.rows - blocked),
        blocked_(blocked),
        blocked_behind_(blocked_behind),
        now_(now),
        room_(room) {}

  Channel result() {
    const bool divided = known_.ordered ? divide_ordered() : divide_unordered();
    if (!divided) set_scheduled(estimate());
    return channel_;
  }

 private:
  void set_scheduled(std::int64_t scheduled) {
    channel_.scheduled = scheduled;
    channel_.ready = rows_ - scheduled;
  }

  // The scheduled messages, if the rows are divided as at the last count.
  std::int64_t estimate() const {
    const auto both = static_cast<double>(known_.ready + known_.scheduled);
    if (both == 0) return 0;
    return std::llround(static_cast<double>(known_.scheduled) / both * static_cast<double>(rows_));
  }

  std::int64_t limit() const { return std::max(kSmall, room_); }
  bool spend(std::int64_t counted, std::int64_t limit) {
    room_ = std::max<std::int64_t>(0, room_ - counted);
    return counted <= limit;
  }

  bool divide_unordered() {
    if (look_.later <= kSmall) {
      set_scheduled(look_.later);
    } else if (look_.due <= kSmall) {
      set_scheduled(rows_ - look_.due);
    } else {
      const bool due = known_.ready < known_.scheduled;
      const std::int64_t most = limit();
      const std::int64_t counted = count_heads(look_.name, now_, due, most + 1);
      if (!spend(counted, most)) return false;
      set_scheduled(due ? rows_ - counted : counted);
    }
    return true;
  }

  bool divide_ordered() {
    if (look_.later <= kSmall && known_.late == 0 && blocked_behind_ == 0) {
      if (look_.later == 0 && blocked_ == 0) {
        set_scheduled(0);
        return true;
      }
      const std::int64_t most = limit();
      const Followers behind = followers_of_later(look_.name, now_, most + 1);
      if (spend(behind.all(), most)) {
        set_scheduled(look_.later + behind.behind);
        return true;
      }
    }
    if (look_.due == 0) {
      set_scheduled(rows_);
      return true;
    }
    if (!look_.small()) return false;
    const std::int64_t most = limit();
    const Followers behind = followers_of_all(look_.name, now_, Int64GetDatum(most + 1));
    if (!spend(behind.all(), most)) return false;
    set_scheduled(rows_ - look_.due - behind.ready);
    return true;
  }

  const Look& look_;
  const row_counts::Known& known_;
  const std::int64_t rows_;
  const std::int64_t blocked_;
  const std::int64_t blocked_behind_;
  const Micros now_;
  std::int64_t& room_;
  Channel channel_;
};

}  // namespace

ByChannel count(Micros now, bool cached) {
  std::vector<Look> looks = find_names();
  if (cached) find_known(looks);
  for (Look& look : looks) {
    if (!look.known) continue;
    // A small channel needs no sum. A look that began less than 20 ms ago drops a stale one, and counts
    // again below. Workers do not: a count may take long, where many rows are or were.
    if (look.known->rows <= kSmall || (row_counts::is_stale(*look.known) && GetCurrentTimestamp() - now < kRefresh))
      look.known.reset();
  }
  count_heads(looks, now, false);
  count_heads(looks, now, true);
  const ByName in_lease = leased(now);
  const ByName to_sweep = exhausted(now);
  const Blocking blocked = blocking();
  const bool ordered = any_behind_others();
  const std::map<std::int64_t, std::int64_t> held = shared::held_by_workers();
  std::int64_t room = kRoom;

  ByChannel result;
  for (const Look& look : looks) {
    Channel channel;
    if (look.known) {
      channel = Split(look, of(blocked.all, look.name), of(blocked.behind, look.name), now, room).result();
    } else {
      Followers behind;
      if (look.small() && ordered) behind = followers_of_all(look.name, now, Int64GetDatum(kSmall + 1));
      if (look.small() && behind.small()) {
        channel.ready = look.due + behind.ready;
        channel.scheduled = look.later + behind.late + behind.behind;
      } else {
        const row_counts::Counted counted = count_all(look.name, now, ordered, cached);
        channel.ready = counted.ready;
        channel.scheduled = counted.scheduled;
      }
    }
    const auto hold = held.find(look.key);
    const std::int64_t by_workers = hold == held.end() ? 0 : hold->second;
    channel.running = of(in_lease, look.name) + by_workers;
    channel.scheduled = std::max<std::int64_t>(0, channel.scheduled - of(in_lease, look.name));
    channel.ready = std::max<std::int64_t>(0, channel.ready - of(to_sweep, look.name) - by_workers);
    if (channel.ready > 0) channel.oldest_ready = look.oldest;
    result.emplace_hint(result.end(), look.name, channel);
  }
  return result;
}

std::int64_t count_rows(std::string_view name, std::int64_t most) {
  static Statement heads("SELECT count(*) FROM (SELECT 1 FROM $S.mq_heads m WHERE m.channel_name = $1 LIMIT $2) AS r",
                         {TEXTOID, INT8OID});
  std::int64_t rows = DatumGetInt64(heads.run({text_datum(name), Int64GetDatum(most)}).get(0, 1));
  if (rows >= most || !any_behind_others()) return rows;
  rows += followers_of_all(name, GetCurrentTimestamp(), Int64GetDatum(most - rows)).all();
  return rows >= most ? rows : rows + headless(name, Int64GetDatum(most - rows));
}

bool keep_count(std::string_view name, std::int64_t own) {
  bool kept = false;
  (void)count_all(name, GetCurrentTimestamp(), any_behind_others(), true, own, &kept);
  return kept;
}

std::map<std::string, std::int64_t, std::less<>> count_dead(bool cached) {
  static Statement names(
      "WITH RECURSIVE n (name) AS ("
      "  SELECT (SELECT d.channel_name FROM $S.mq_dead d ORDER BY d.channel_name LIMIT 1)"
      "  UNION ALL"
      "  SELECT (SELECT d.channel_name FROM $S.mq_dead d WHERE d.channel_name > n.name"
      "           ORDER BY d.channel_name LIMIT 1) FROM n WHERE n.name IS NOT NULL)"
      " SELECT n.name, (SELECT count(*) FROM (SELECT 1 FROM $S.mq_dead d WHERE d.channel_name = n.name LIMIT $1) AS "
      "dead)"
      "   FROM n WHERE n.name IS NOT NULL",
      {INT8OID});
  static Statement all("SELECT count(*) FROM $S.mq_dead d WHERE d.channel_name = $1", {TEXTOID});
  const Rows rows = names.run({Int64GetDatum(kSmall + 1)});
  std::map<std::string, std::int64_t, std::less<>> result;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::int64_t& dead = result[std::string(text_view(rows.get(i, 1)))];
    dead = DatumGetInt64(rows.get(i, 2));
    if (dead <= kSmall) continue;
    const std::int64_t key = channel_key(text_view(rows.get(i, 1)), {});
    std::optional<row_counts::Known> known;
    if (cached) known = row_counts::find(Extension::dead(), {key}).front();
    if (known && !row_counts::is_stale(*known)) {
      dead = known->rows;
      continue;
    }
    row_counts::Recount recount(Extension::dead(), key, cached);
    dead = DatumGetInt64(all.run({rows.get(i, 1)}, recount.snapshot()).get(0, 1));
    row_counts::Counted counted;
    counted.rows = dead;
    recount.finish(counted);
  }
  return result;
}

}  // namespace mq::channel_counts
