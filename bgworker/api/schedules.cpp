// Schedules: mq_schedule, mq_unschedule, mq_next_times. Sessions call them through mq.c. The file owns no state.
// An advisory lock, held to commit, makes changes of the schedules of one name serial.

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "api/admin.hpp"
#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/handler_identity.hpp"
#include "pg/locks.hpp"
#include "pg/result_set.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/commit_actions.hpp"
#include "queue/enabled.hpp"
#include "queue/new_id.hpp"
#include "queue/schedule.hpp"
#include "queue/sender.hpp"
#include "queue/timetable.hpp"
#include "shmem/channel_key.hpp"

namespace mq {

namespace {

constexpr int kMostTimes = 10'000;  // of a call of mq_next_times

// The arguments of mq_schedule, by position.
enum Argument {
  kName,
  kSchedule,
  kChannelName,
  kPayloadJson,
  kMessageName,
  kChannelArgs,
  kOrdered,
  kRetries,
  kRetryBackoff,
  kPayloadBytes,
  kDedupKey,
  kExpires,
  kPriority,
  kHeaders,
  kKeep,
  kTimeZone,
  kCatchUp,
  kOverlap,
};

std::string_view name_of(const Value& value) {
  const std::string_view name = text_of(value, "name");
  check::name("name", name);
  if (name.empty()) check::fail("name", name, "must not be empty");
  return name;
}

// Throws what mq_send would for a message with these options.
void check_message(FunctionCallInfo fcinfo) {
  NewMessage message;
  message.channel_name = argument(fcinfo, kChannelName);
  message.payload_json = argument(fcinfo, kPayloadJson);
  message.name = argument(fcinfo, kMessageName);
  if (message.name.null)
    message.name = message.channel_name;
  else
    check::name("message_name", text_view(message.name.datum));
  message.channel_args = argument(fcinfo, kChannelArgs);
  message.ordered = argument(fcinfo, kOrdered);
  message.delay = {interval_datum(0), false};
  message.retries = argument(fcinfo, kRetries);
  message.retry_backoff = argument(fcinfo, kRetryBackoff);
  message.payload_bytes = argument(fcinfo, kPayloadBytes);
  message.dedup_key = argument(fcinfo, kDedupKey);
  const std::int32_t priority = int_of(argument(fcinfo, kPriority), "priority");
  check::priority("priority", priority);
  message.priority = {Int16GetDatum(static_cast<std::int16_t>(priority)), false};
  message.headers = argument(fcinfo, kHeaders);
  message.keep = argument(fcinfo, kKeep);
  message.id = {uuid_datum(new_id()), false};
  Sender sender(Sender::Json::kJsonb, false);
  if (!PG_ARGISNULL(kExpires)) sender.expire_after(PG_GETARG_DATUM(kExpires));
  sender.add(message);
}

void check_catch_up(const Value& value) {
  const std::string_view catch_up = text_of(value, "catch_up");
  if (catch_up != "none" && catch_up != "one" && catch_up != "all")
    check::fail("catch_up", catch_up, "must be \"none\", \"one\" or \"all\"");
}

// What is kept of a schedule that is replaced.
struct Before {
  bool same;  // it has the same times, in this database
  Micros anchor, next_at;
};

// Locks the row of that name, if there is one. Throws 42501 unless the caller is a member of its role or has the
// right `admin`.
std::optional<Before> lock(const Value& name, const Param& schedule, const Param& time_zone, Oid caller,
                           const char* what) {
  static Statement select(
      "SELECT m.id IS NOT NULL AND t.schedule = $2 AND t.time_zone = $3, t.anchor, t.next_at, r.oid,"
      "   COALESCE(r.rolname::pg_catalog.text, t.run_as)"
      "  FROM $S.mq_timetable t LEFT JOIN $S.mq_enabled m ON m.id = t.enabled_id"
      "  LEFT JOIN pg_catalog.pg_roles r ON CASE WHEN m.id IS NULL THEN r.rolname = t.run_as ELSE r.oid = t.run_as_oid "
      "END"
      " WHERE t.name = $1 FOR UPDATE OF t",
      {TEXTOID, TEXTOID, TEXTOID});
  locks::lock_schedule(channel_key(text_view(name.datum), {}));
  const Rows rows = select.run({name.datum, schedule, time_zone});
  if (rows.empty()) return std::nullopt;
  bool gone = false;
  const Datum role = rows.get(0, 4, gone);
  if ((gone || !may_become(caller, DatumGetObjectId(role))) && !is_admin(caller))
    throw Error("42501", mq::format("must be a member of role \"{}\", which made the schedule, or have the right "
                                    "\"admin\" to {} it",
                                    text_view(rows.get(0, 5)), what));
  bool null = false;
  const Datum same = rows.get(0, 1, null);
  return Before{!null && DatumGetBool(same), DatumGetTimestampTz(rows.get(0, 2)), DatumGetTimestampTz(rows.get(0, 3))};
}

void schedule(FunctionCallInfo fcinfo) {
  static Statement upsert(
      "INSERT INTO $S.mq_timetable AS t (name, schedule, time_zone, catch_up, overlap, channel_name, message_name,"
      "   channel_args, payload_json, payload_bytes, headers, ordered, priority, retries, retry_backoff, dedup_key, "
      "expires,"
      "   keep, run_as, enabled_id, run_as_oid, anchor, next_at, planned_at)"
      " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,"
      "   $23, $24)"
      " ON CONFLICT (name) DO UPDATE SET schedule = $2, time_zone = $3, catch_up = $4, overlap = $5, channel_name = $6,"
      "   message_name = $7, channel_args = $8, payload_json = $9, payload_bytes = $10, headers = $11, ordered = $12,"
      "   priority = $13, retries = $14, retry_backoff = $15, dedup_key = $16, expires = $17, keep = $18, run_as = $19,"
      "   enabled_id = $20, run_as_oid = $21, anchor = $22, next_at = $23, planned_at = $24, retry_at = NULL,"
      "   failures = 0, sqlstate = NULL, error = NULL",
      {TEXTOID,     TEXTOID,     TEXTOID,  TEXTOID, BOOLOID, TEXTOID,        TEXTOID,        TEXTOID,
       JSONBOID,    BYTEAOID,    JSONBOID, BOOLOID, INT4OID, INT4OID,        INTERVALOID,    TEXTOID,
       INTERVALOID, INTERVALOID, TEXTOID,  UUIDOID, OIDOID,  TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID});
  if (!Extension::get().is_updated()) throw Extension::get().needs_update();
  const Value name = argument(fcinfo, kName);
  (void)name_of(name);
  const std::string_view text = text_of(argument(fcinfo, kSchedule), "schedule");
  const std::string_view time_zone = text_of(argument(fcinfo, kTimeZone), "time_zone");
  const Micros now = GetCurrentTimestamp();
  const Schedule schedule(text, time_zone, now);
  check_message(fcinfo);
  check_catch_up(argument(fcinfo, kCatchUp));
  (void)bool_of(argument(fcinfo, kOverlap), "overlap");
  const Micros first = schedule.next(now);
  if (first == kNever) check::fail("schedule", text, "must have a time within the next sixty years");
  const Oid caller = GetUserId();
  const char* role = guard::call([&] { return GetUserNameFromId(caller, false); });

  const OwnerScope scope;
  const SpiConnection spi;
  timetable::check_may_send(caller);
  enabled::enable_if_empty();
  const std::optional<Uuid> enabled_id = enabled::lock_id();
  const std::optional<Before> before =
      lock(name, PG_GETARG_DATUM(kSchedule), PG_GETARG_DATUM(kTimeZone), caller, "replace");
  const bool goes_on = before && before->same;
  const auto given = [&](Argument n) {
    const Value value = argument(fcinfo, n);
    return value.null ? Param() : Param(value.datum);
  };
  upsert.run({given(kName),
              given(kSchedule),
              given(kTimeZone),
              given(kCatchUp),
              given(kOverlap),
              given(kChannelName),
              given(kMessageName),
              given(kChannelArgs),
              given(kPayloadJson),
              given(kPayloadBytes),
              given(kHeaders),
              given(kOrdered),
              given(kPriority),
              given(kRetries),
              given(kRetryBackoff),
              given(kDedupKey),
              given(kExpires),
              given(kKeep),
              text_datum(role),
              enabled_id ? Param(uuid_datum(*enabled_id)) : Param(),
              ObjectIdGetDatum(caller),
              TimestampTzGetDatum(goes_on ? before->anchor : now),
              TimestampTzGetDatum(goes_on ? before->next_at : first),
              TimestampTzGetDatum(now)});
  commit_actions::schedules_changed();
  if (!enabled::here()) enabled::say_waits();
}

bool unschedule(FunctionCallInfo fcinfo) {
  static Statement remove("DELETE FROM $S.mq_timetable t WHERE t.name = $1", {TEXTOID});
  const Value name = argument(fcinfo, 0);
  (void)name_of(name);
  const Oid caller = GetUserId();
  const OwnerScope scope;
  const SpiConnection spi;
  if (!lock(name, Param(), Param(), caller, "remove")) return false;
  remove.run({name.datum});
  commit_actions::schedules_changed();
  return true;
}

void next_times(FunctionCallInfo fcinfo) {
  ResultSet result(fcinfo);
  const std::string_view text = text_of(argument(fcinfo, 0), "schedule");
  const std::string_view time_zone = text_of(argument(fcinfo, 1), "time_zone");
  if (PG_ARGISNULL(2)) check::fail_null("after");
  Micros at = PG_GETARG_TIMESTAMPTZ(2);
  if (TIMESTAMP_NOT_FINITE(at)) check::fail("after", at < 0 ? "-infinity" : "infinity", "must be finite");
  if (at >= Schedule::last_moment()) check::fail("after", timestamp_text(at), "must be before the year 32000");
  const std::int32_t times = int_of(argument(fcinfo, 3), "times");
  check::count("times", times, 0, kMostTimes);
  const Schedule schedule(text, time_zone, at);
  for (int i = 0; i < times; ++i) {
    at = schedule.next(at);
    if (at == kNever) break;
    result.add({TimestampTzGetDatum(at)});
  }
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_schedule_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_schedule()");
    mq::schedule(fcinfo);
    return Datum{0};
  });
}

extern "C" Datum mq_unschedule_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_unschedule()");
    return BoolGetDatum(mq::unschedule(fcinfo));
  });
}

extern "C" Datum mq_next_times_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::next_times(fcinfo);
    return Datum{0};
  });
}

// For the hooks in mq.c; entries.h says what they return.

extern "C" bool mq_has_schedules(const char* name) {
  return strcmp(name, "mq_timetable") == 0;
}

extern "C" void mq_schedules_changed(void) {
  mq::guard::callback([] { mq::commit_actions::schedules_changed(); });
}
