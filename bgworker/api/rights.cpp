// Rights: mq_grant and mq_revoke grant and revoke whole sets, so that users need no rights to write
// the tables. Sessions call them through mq.c. The file owns no state: the rights are in catalogs.

#include <array>
#include <string>
#include <string_view>

#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"

extern "C" {
#include "utils/acl.h"
}

namespace mq {

namespace {

struct Right {
  std::string_view name;
  // The text between GRANT and TO, a statement each; empty: none. $S stands for the schema.
  std::array<std::string_view, 5> objects;
};

// A set has the rights that its purpose needs and no others; admin includes the other sets.
constexpr Right kRights[] = {
    {"produce",
     {"USAGE ON TYPE $S.mq_new_t",
      "EXECUTE ON FUNCTION $S.mq_insert, $S.mq_send, $S.mq_send_many, $S.mq_send_once, $S.mq_publish, $S.mq_commit,"
      " $S.mq_status, $S.mq_wait, $S.mq_channel_key, $S.mq_uuid_exists, $S.mq_why",
      "EXECUTE ON PROCEDURE $S.mq_call"}},
    {"consume",
     {"USAGE ON TYPE $S.mq_message, $S.mq_delivery", "SELECT (id) ON $S.mq_msgs",
      "EXECUTE ON FUNCTION $S.mq_poll, $S.mq_delete, $S.mq_cancel, $S.mq_keep_alive, $S.mq_checkpoint, "
      "$S.mq_uuid_exists,"
      " $S.mq_snooze, $S.mq_discard, $S.mq_progress, $S.mq_why, $S.mq_clear, $S.mq_clear_all, $S.mq_receive,"
      " $S.mq_ack, $S.mq_nack, $S.mq_extend",
      "EXECUTE ON PROCEDURE $S.mq_run"}},
    {"monitor",
     {"SELECT ON $S.mq_stats, $S.mq_metrics, $S.mq_histogram, $S.mq_workers, $S.mq_horizon, $S.mq_limits,"
      " $S.mq_subscriptions, $S.mq_schedules",
      "EXECUTE ON FUNCTION $S.mq_health, $S.mq_why, $S.mq_channel_stats, $S.mq_channel_histograms, $S.mq_limit_use, "
      "$S.mq_worker_slots,"
      " $S.mq_telling_calls, $S.mq_horizon_holders, $S.mq_rate_state, $S.mq_last_state"}},
    // Whose handlers it may register, and whose channels pause, is checked there (api/handlers.cpp).
    {"develop",
     {"SELECT ON $S.mq_handlers, $S.mq_paused, $S.mq_channel_limits, $S.mq_subscriptions",
      "USAGE ON TYPE $S.mq_message",
      "EXECUTE ON FUNCTION $S.mq_register_handler, $S.mq_unregister_handler, $S.mq_pause, $S.mq_resume,"
      " $S.mq_limit, $S.mq_unlimit"}},
    {"admin",
     {"USAGE ON TYPE $S.mq_new_t, $S.mq_message, $S.mq_delivery",
      "SELECT ON $S.mq_msgs, $S.mq_payloads, $S.mq_dead, $S.mq_failures, $S.mq_done, $S.mq_handlers, $S.mq_paused,"
      " $S.mq_timetable, $S.mq_schedules, $S.mq_channel_limits, $S.mq_limits, $S.mq_headless, $S.mq_heads, "
      "$S.mq_cancelled, $S.mq_prerequisites, "
      "$S.mq_rechecks, $S.mq_stats_totals, "
      "$S.mq_stats_deltas, "
      "$S.mq_enabled, "
      "$S.mq_stats, $S.mq_metrics, $S.mq_histogram, $S.mq_workers, "
      "$S.mq_horizon, $S.mq_subscribers, $S.mq_subscriptions",
      // pg_dump reads the sequences.
      "SELECT ON SEQUENCE $S.mq_msgs_seq, $S.mq_dead_dead_no_seq, $S.mq_failures_failure_no_seq, "
      "$S.mq_done_done_no_seq",
      "EXECUTE ON FUNCTION $S.mq_insert, $S.mq_send, $S.mq_send_many, $S.mq_send_once, $S.mq_commit, $S.mq_channel_key,"
      " $S.mq_status, $S.mq_wait, $S.mq_uuid_exists, $S.mq_latest_message, $S.mq_active_channels, $S.mq_poll, "
      "$S.mq_delete, $S.mq_cancel, "
      "$S.mq_keep_alive,"
      " $S.mq_checkpoint, $S.mq_snooze, $S.mq_discard, $S.mq_progress, $S.mq_clear, $S.mq_clear_all, $S.mq_receive,"
      " $S.mq_ack, $S.mq_nack, $S.mq_extend, $S.mq_register_handler,"
      " $S.mq_unregister_handler, $S.mq_pause, $S.mq_resume, $S.mq_limit, $S.mq_unlimit, $S.mq_limit_use, "
      "$S.mq_redrive, $S.mq_grant, $S.mq_revoke,"
      " $S.mq_health, $S.mq_why, $S.mq_horizon_holders, $S.mq_worker_slots, $S.mq_telling_calls, $S.mq_channel_stats, "
      "$S.mq_channel_histograms, "
      "$S.mq_reset_stats,"
      " $S.mq_enable, $S.mq_subscribe, $S.mq_unsubscribe, $S.mq_publish, $S.mq_rate_state, $S.mq_schedule, "
      "$S.mq_unschedule, $S.mq_next_times, $S.mq_last_state",
      "EXECUTE ON PROCEDURE $S.mq_run, $S.mq_call"}},
};

void replace_all(std::string& text, std::string_view what, std::string_view by) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + by.size()))
    text.replace(at, what.size(), by);
}

void execute(const std::string& statement) {
  const char* sql = statement.c_str();
  guard::call([&] {
    const int code = SPI_execute(sql, false, 0);
    if (code < 0) elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(code));
  });
}

// Runs "<verb> <objects> <preposition> <role>" for each entry of the set, as the extension's owner.
// The role's name is the only part that a user chose. It comes from the catalog and is quoted.
void change(FunctionCallInfo fcinfo, const char* verb, const char* preposition) {
  if (!Extension::get().is_updated()) throw Extension::get().needs_update();
  if (PG_ARGISNULL(0)) check::fail_null("role");
  const Oid role = PG_GETARG_OID(0);
  const std::string_view right = text_of(argument(fcinfo, 1), "right");
  const Right* set = nullptr;
  for (const Right& r : kRights)
    if (r.name == right) set = &r;
  if (set == nullptr)
    check::fail("right", right, "must be \"produce\", \"consume\", \"monitor\", \"develop\" or \"admin\"");
  const char* name = guard::call([&] { return GetUserNameFromId(role, true); });
  if (name == nullptr) check::fail("role", std::to_string(role), "must be a role that exists");
  const std::string quoted = guard::call([&] { return quote_identifier(name); });

  const OwnerScope scope;
  const SpiConnection spi;
  for (const std::string_view objects : set->objects) {
    if (objects.empty()) continue;
    std::string statement = std::string(verb) + " " + std::string(objects) + " " + preposition + " " + quoted;
    replace_all(statement, "$S", Extension::get().quoted_schema());
    execute(statement);
  }
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_grant_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_grant()");
    mq::change(fcinfo, "GRANT", "TO");
    return Datum{0};
  });
}

extern "C" Datum mq_revoke_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_revoke()");
    mq::change(fcinfo, "REVOKE", "FROM");
    return Datum{0};
  });
}
