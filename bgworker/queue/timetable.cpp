#include "queue/timetable.hpp"

#include <algorithm>
#include <iterator>
#include <string>

#include "pg/crash_point.hpp"
#include "pg/empty_table.hpp"
#include "pg/error.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/locks.hpp"
#include "pg/own_function.hpp"
#include "pg/row_locks.hpp"
#include "pg/statement.hpp"
#include "queue/new_id.hpp"
#include "queue/pending_limit.hpp"
#include "queue/schedule.hpp"
#include "queue/sender.hpp"

namespace mq::timetable {

namespace {

constexpr std::size_t kStep = 100;               // schedules that a step sends
constexpr std::int64_t kMostMissed = 500;        // messages that a step sends for one of them (catch_up => 'all')
constexpr std::size_t kSingles = 20;             // schedules that a failed step tries one by one
constexpr Micros kLate = 60 * kSecond;           // a time that is longer ago was missed
constexpr Micros kLastRetry = 300 * kSecond;     // the longest wait after a failure; the first is 1 s
constexpr Micros kLocked = kSecond / 10;         // before a look at what others hold locked
constexpr Micros kLockedLast = 5 * kSecond;      // at most
constexpr Micros kSetBack = 3 * 3600 * kSecond;  // what a clock is set back by if it was wrong before

void pass_on_cancel(const Error& error) {
  if (error.sqlstate.starts_with("57")) throw error;
}

#define MAY_SEND(role)                                       \
  "pg_catalog.bool_or(pg_catalog.has_schema_privilege(" role \
  ", p.pronamespace, 'USAGE')"                               \
  " AND pg_catalog.has_function_privilege(" role ", p.oid, 'EXECUTE'))"
#define MQ_SEND "pg_catalog.pg_proc p WHERE p.proname = 'mq_send' AND p.pronamespace = $1 AND " MQ_IS_OWN_FUNCTION("p")

Error may_not_send(std::string_view role) {
  return {"42501", mq::format("role \"{}\" may not call mq_send", role), "A schedule sends as the role that made it.",
          "Grant it the right \"produce\" with mq_grant."};
}

// The columns of the query in send_due().
struct Column {
  enum {
    kName = 1,
    kSchedule,
    kTimeZone,
    kCatchUp,
    kOverlap,
    kAnchor,
    kNextAt,
    kLastId,
    kFailures,
    kRole,  // NULL: it does not exist any more
    kRunAs,
    kMaySend,
    kChannelName,
    kChannelArgs,
    kMessageName,
    kPayloadJson,
    kPayloadBytes,
    kHeaders,
    kOrdered,
    kPriority,
    kRetries,
    kRetryBackoff,
    kDedupKey,
    kExpires,
    kKeep,
  };
};

// A due row of the timetable.
class Row {
 public:
  Row(const Rows& rows, std::size_t at) : rows_(rows), at_(at) {}

  Value value(int column) const {
    Value v;
    v.datum = rows_.get(at_, column, v.null);
    return v;
  }
  std::string_view text(int column) const { return text_view(rows_.get(at_, column)); }
  Micros time(int column) const { return DatumGetTimestampTz(rows_.get(at_, column)); }
  bool flag(int column) const { return DatumGetBool(rows_.get(at_, column)); }
  int number(int column) const { return DatumGetInt32(rows_.get(at_, column)); }
  bool has(int column) const { return !rows_.is_null(at_, column); }
  Param name() const { return rows_.get(at_, Column::kName); }

 private:
  const Rows& rows_;
  const std::size_t at_;
};

// The headers of a message of the schedule: those that were given, and which time of which schedule it is for.
Value headers_of(const Row& row, Micros at) {
  static Statement make(
      "SELECT pg_catalog.jsonb_build_object('schedule', pg_catalog.jsonb_build_object('name', $1, 'at', $2))"
      " || COALESCE($3, '{}')",
      {TEXTOID, TIMESTAMPTZOID, JSONBOID});
  const Value given = row.value(Column::kHeaders);
  const Rows made = make.run({row.name(), TimestampTzGetDatum(at), given.null ? Param() : Param(given.datum)});
  return {made.get(0, 1), false};
}

// Whether the message with this id is pending. One that is cancelled or blocks its channel is not.
bool is_pending(const Uuid& id) {
  static Statement select(
      "SELECT 1 FROM $S.mq_msgs m WHERE m.id = $1 AND m.attempt_at IS NOT NULL"
      "   AND NOT EXISTS (SELECT FROM $S.mq_cancelled c WHERE c.message_id = m.id AND c.seq = m.seq)",
      {UUIDOID});
  return !select.run({uuid_datum(id)}).empty();
}

Uuid send_one(const Row& row, Micros at) {
  NewMessage message;
  message.channel_name = row.value(Column::kChannelName);
  message.name = row.has(Column::kMessageName) ? row.value(Column::kMessageName) : message.channel_name;
  message.channel_args = row.value(Column::kChannelArgs);
  message.payload_json = row.value(Column::kPayloadJson);
  message.payload_bytes = row.value(Column::kPayloadBytes);
  message.headers = headers_of(row, at);
  message.ordered = row.value(Column::kOrdered);
  message.priority = {Int16GetDatum(static_cast<std::int16_t>(row.number(Column::kPriority))), false};
  message.retries = row.value(Column::kRetries);
  message.retry_backoff = row.value(Column::kRetryBackoff);
  message.dedup_key = row.value(Column::kDedupKey);
  message.keep = row.value(Column::kKeep);
  message.delay = {interval_datum(0), false};
  message.id = {uuid_datum(new_id()), false};
  Sender sender(Sender::Json::kJsonb, false);
  if (row.has(Column::kExpires)) sender.expire_after(row.value(Column::kExpires).datum);
  sender.add(message);
  if (!message.dedup_key.null) return sender.send_once();
  sender.send();
  return sender.ids().front();
}

// Which of its times a due schedule is to send for, and when it is due next.
struct Plan {
  std::vector<Micros> times;
  Micros next;
};

Plan plan_of(const Row& row, Micros now) {
  const Schedule schedule(row.text(Column::kSchedule), row.text(Column::kTimeZone), row.time(Column::kAnchor));
  // -infinity, which is no time of a schedule, is written by hand: now.
  const Micros written = row.time(Column::kNextAt);
  const Micros first = TIMESTAMP_IS_NOBEGIN(written) ? now : written;
  const std::string_view catch_up = row.text(Column::kCatchUp);
  // It is due by its retry_at alone: see follow_clock().
  if (first > now) return {{}, schedule.next(now)};
  if (catch_up == "all") {
    // All share a savepoint. So after a failure one comes first, and no more than a channel with max_pending has room
    // for. Where there is no room one fails, and says so.
    std::int64_t most = row.number(Column::kFailures) > 0 ? 1 : kMostMissed;
    if (const auto room = pending_limit::room(row.text(Column::kChannelName)))
      most = std::clamp<std::int64_t>(*room, 1, most);
    Plan plan{{}, first};
    while (plan.next <= now && std::ssize(plan.times) < most) {
      plan.times.push_back(plan.next);
      plan.next = schedule.next(plan.next);
    }
    return plan;
  }
  const Micros last = schedule.last(first, now).value_or(first);
  Plan plan{{last}, schedule.next(now)};
  if (catch_up == "none" && now - last > kLate) plan.times.clear();
  return plan;
}

// Adds to `sent` what becomes of the row.
void send(const Row& row, Micros now, Sent& sent) {
  static Statement moved(
      "UPDATE $S.mq_timetable SET next_at = $2, planned_at = $3, last_at = COALESCE($4, last_at),"
      "   last_id = COALESCE($5, last_id), retry_at = NULL, failures = 0, sqlstate = NULL, error = NULL, run_as = $6"
      " WHERE name = $1",
      {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, TEXTOID});
  if (!row.has(Column::kRole))
    throw Error("42704", mq::format("role \"{}\" does not exist", row.text(Column::kRunAs)),
                "The schedule sends as this role, which made it.", "Call mq_schedule for it as another role.");
  if (!row.flag(Column::kMaySend)) throw may_not_send(row.text(Column::kRunAs));
  const OwnerScope scope;
  const Plan plan = plan_of(row, now);
  MQ_CRASH_POINT(schedule_planned);
  std::optional<Uuid> last_id;
  if (row.has(Column::kLastId)) last_id = uuid_of(row.value(Column::kLastId).datum);
  std::optional<Micros> last_at;
  const bool overlaps = row.flag(Column::kOverlap);
  for (const Micros at : plan.times) {
    if (!overlaps && last_id && is_pending(*last_id)) break;  // and so it is at the other times
    last_id = send_one(row, at);
    last_at = at;
    MQ_CRASH_POINT(schedule_sent);
  }
  moved.run({row.name(), TimestampTzGetDatum(plan.next), TimestampTzGetDatum(now),
             last_at ? Param(TimestampTzGetDatum(*last_at)) : Param(), last_at ? Param(uuid_datum(*last_id)) : Param(),
             row.value(Column::kRunAs).datum});
  MQ_CRASH_POINT(schedule_moved);
  sent.messages = sent.messages || last_at;
  sent.more = sent.more || plan.next <= now;
}

void note_failure(const Row& row, const Error& error, Micros now) {
  static Statement failed(
      "UPDATE $S.mq_timetable SET failures = $2, retry_at = $3, planned_at = $4, sqlstate = $5, error = "
      "pg_catalog.left($6, 2000),"
      "   run_as_oid = CASE WHEN $7 THEN run_as_oid ELSE 0 END"
      " WHERE name = $1",
      {TEXTOID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, BOOLOID});
  const int failures = row.number(Column::kFailures);
  constexpr int kMostDoubled = 10;
  const Micros wait = std::min(kLastRetry, kSecond << std::min(failures, kMostDoubled));
  const std::string text = error.detail.empty() ? error.message : error.message + ": " + error.detail;
  const OwnerScope scope;
  failed.run({row.name(), Int32GetDatum(std::min(failures, PG_INT32_MAX - 1) + 1), TimestampTzGetDatum(now + wait),
              TimestampTzGetDatum(now), text_datum(error.sqlstate), text_datum(text),
              BoolGetDatum(row.has(Column::kRole))});
}

// The same under a savepoint. What fails is noted in the row.
void try_send(Transaction& transaction, const Row& row, Micros now, Sent& sent) {
  Sent mine;
  try {
    under_savepoint(transaction, [&] { send(row, now, mine); });
  } catch (const Error& error) {
    pass_on_cancel(error);
    note_failure(row, error, now);
    return;
  }
  sent.messages = sent.messages || mine.messages;
  sent.more = sent.more || mine.more;
}

// The clock was set back by so much that it must have been wrong before: schedules that were planned in what is
// the future now are due, and get their next time. Less than that repeats no time.
void follow_clock(Micros now) {
  static Statement early("UPDATE $S.mq_timetable SET retry_at = $1, planned_at = $1 WHERE planned_at > $2",
                         {TIMESTAMPTZOID, TIMESTAMPTZOID});
  early.run({TimestampTzGetDatum(now), TimestampTzGetDatum(now + kSetBack)});
}

// Writes the names of renamed roles, so that a dump does not have the old ones, and 0 for dropped roles, whose
// names others may get.
void follow_roles() {
  static Statement follow(
      "UPDATE $S.mq_timetable t SET run_as = COALESCE(c.rolname::pg_catalog.text, t.run_as),"
      "                             run_as_oid = COALESCE(c.oid, 0)"
      "  FROM (SELECT l.ctid AS row, r.oid, r.rolname FROM $S.mq_timetable l JOIN $S.mq_enabled m ON m.id = "
      "l.enabled_id"
      "          LEFT JOIN pg_catalog.pg_roles r ON r.oid = l.run_as_oid"
      "         WHERE l.run_as_oid <> 0 AND r.rolname IS DISTINCT FROM l.run_as FOR NO KEY UPDATE OF l SKIP LOCKED) c"
      " WHERE t.ctid = c.row",
      {});
  follow.run({});
}

}  // namespace

void check_may_send(Oid role) {
  static Statement select("SELECT " MAY_SEND("$2") " FROM " MQ_SEND, {OIDOID, OIDOID});
  const OwnerScope scope;
  const Rows rows = select.run({ObjectIdGetDatum(Extension::get().schema()), ObjectIdGetDatum(role)});
  if (rows.is_null(0, 1) || !DatumGetBool(rows.get(0, 1))) {
    const char* name = guard::call([&] { return GetUserNameFromId(role, true); });
    throw may_not_send(name != nullptr ? name : std::to_string(role));
  }
}

Look look() {
  const Oid table = Extension::get().relation("mq_timetable");
  if (!locks::try_table(table, RowExclusiveLock)) return Look::kLocked;
  return has_no_block(table) ? Look::kEmpty : Look::kSome;
}

Sent send_due(Transaction& transaction, Micros now, bool thorough, const std::vector<std::string_view>* only) {
  static Statement select(
      "SELECT t.name, t.schedule, t.time_zone, t.catch_up, t.overlap, t.anchor, t.next_at, t.last_id, t.failures, "
      "r.oid,"
      "   COALESCE(r.rolname::pg_catalog.text, t.run_as),"
      "   COALESCE((SELECT " MAY_SEND(
          "r.oid") " FROM " MQ_SEND
                   "), false),"
                   "   t.channel_name, t.channel_args, t.message_name, t.payload_json, t.payload_bytes, t.headers, "
                   "t.ordered,"
                   "   t.priority, t.retries, t.retry_backoff, t.dedup_key, t.expires, t.keep"
                   "  FROM $S.mq_timetable t JOIN $S.mq_enabled m ON m.id = t.enabled_id"
                   "  LEFT JOIN pg_catalog.pg_roles r ON r.oid = t.run_as_oid"
                   " WHERE ((t.retry_at IS NULL AND t.next_at <= $2) OR t.retry_at <= $2) AND ($4 OR t.channel_name = "
                   "ANY ($3))"
                   " ORDER BY t.next_at LIMIT $5 FOR NO KEY UPDATE OF t SKIP LOCKED",
      {OIDOID, TIMESTAMPTZOID, TEXTARRAYOID, BOOLOID, INT8OID});
  const row_locks::ShortWaits short_waits;
  Rows rows;
  {
    const OwnerScope scope;
    if (thorough) {
      follow_clock(now);
      follow_roles();
    }
    ArrayParam names(TEXTOID);
    if (only != nullptr)
      for (const std::string_view name : *only) names.add(text_datum(name));
    rows = select.run({ObjectIdGetDatum(Extension::get().schema()), TimestampTzGetDatum(now), names.datum(),
                       BoolGetDatum(only == nullptr), Int64GetDatum(kStep)});
  }
  if (rows.empty()) return {};
  MQ_CRASH_POINT(schedule_locked);
  // The rows are locked from here on, and other processes pass over them: none of them may wait for long.
  const row_locks::ShortWaits short_sends(row_locks::ShortWaits::Where::kAnywhere);
  if (rows.size() > 1) try {
      Sent sent;
      under_savepoint(transaction, [&] {
        for (std::size_t i = 0; i < rows.size(); ++i) send(Row(rows, i), now, sent);
      });
      sent.more = sent.more || rows.size() == kStep;
      return sent;
    } catch (const Error& error) {
      pass_on_cancel(error);
    }
  const std::size_t singles = std::min(kSingles, rows.size());
  Sent sent;
  for (std::size_t i = 0; i < singles; ++i) try_send(transaction, Row(rows, i), now, sent);
  sent.more = sent.more || singles < rows.size();
  return sent;
}

Micros next(Micros now) {
  static Statement select(
      "SELECT LEAST("
      "  (SELECT t.next_at FROM $S.mq_timetable t JOIN $S.mq_enabled m ON m.id = t.enabled_id"
      "    WHERE t.retry_at IS NULL ORDER BY t.next_at LIMIT 1),"
      "  (SELECT t.retry_at FROM $S.mq_timetable t JOIN $S.mq_enabled m ON m.id = t.enabled_id"
      "    WHERE t.retry_at IS NOT NULL ORDER BY t.retry_at LIMIT 1))",
      {});
  const OwnerScope scope;
  const Rows rows = select.run({});
  if (rows.is_null(0, 1)) return kNever;
  const Micros at = DatumGetTimestampTz(rows.get(0, 1));
  return at > now ? at : now + std::clamp(now - at, kLocked, kLockedLast);
}

}  // namespace mq::timetable
