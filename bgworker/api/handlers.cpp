// Handlers and channels: mq_register_handler, mq_unregister_handler, mq_pause, mq_resume,
// mq_announce.
//
// mq.c calls it: for sessions, mq_health() (mq_handler_function, mq_handler_trouble), CREATE and
// ALTER EXTENSION (mq_announce), and in a hook (mq_object_dropped). The file owns no state. An
// advisory lock, held to commit, makes registrations for one channel name serial.

#include <string>

#include "api/own_handlers.hpp"
#include "entries.h"
#include "handlers/shape.hpp"
#include "handlers/signature.hpp"
#include "pg/arguments.hpp"
#include "pg/connects.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/handler_identity.hpp"
#include "pg/locks.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "pg/versions.hpp"
#include "queue/commit_actions.hpp"
#include "queue/current_call.hpp"
#include "queue/enabled.hpp"
#include "shmem/channel_key.hpp"

extern "C" {
#include "catalog/pg_authid.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
}

namespace mq {

namespace {

constexpr int kMostBatch = 100000;
constexpr int kMostWorkers = 1000;

std::string role_name(Oid role) {
  const char* name = guard::call([&] { return GetUserNameFromId(role, true); });
  if (name == nullptr) check::fail("run_as", std::to_string(role), "must be a role that exists");
  return name;
}

// Whether workers, or the sessions of leased handlers, can connect as the role. Workers need LOGIN
// before PostgreSQL 17, sessions always.
bool may_connect(Oid role, bool leased) {
  if (!leased && !server::kWorkersNeedLogin) return true;
  return guard::call([&] {
    HeapTuple tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
    const bool login = HeapTupleIsValid(tuple) && ((Form_pg_authid)GETSTRUCT(tuple))->rolcanlogin;
    if (HeapTupleIsValid(tuple)) ReleaseSysCache(tuple);
    return login;
  });
}

Param optional_interval(const Value& value, std::string_view field) {
  if (value.null) return {};
  const Micros micros = interval_of(value, field, GetCurrentTimestamp());
  check::positive(field, interval_text(value.datum), micros);
  return interval_datum(micros);
}

Param optional_count(const Value& value, std::string_view field, int most) {
  if (value.null) return {};
  check::count(field, DatumGetInt32(value.datum), 1, most);
  return value.datum;
}

void register_handler(FunctionCallInfo fcinfo) {
  if (!Extension::get().is_updated()) throw Extension::get().needs_update();
  const std::string_view channel = text_of(argument(fcinfo, 0), "channel_name");
  check::name("channel_name", channel);
  if (PG_ARGISNULL(1)) check::fail_null("handler");
  const Oid function = PG_GETARG_OID(1);
  Param message_name;
  if (!PG_ARGISNULL(2)) {
    check::name("message_name", text_view(PG_GETARG_DATUM(2)));
    message_name = PG_GETARG_DATUM(2);
  }
  const std::string_view mode = text_of(argument(fcinfo, 3), "mode");
  check::one_of("mode", mode, "transactional", "leased");
  const bool leased = mode == "leased";
  const Param batch_size = optional_count(argument(fcinfo, 4), "batch_size", kMostBatch);
  const Param timeout = optional_interval(argument(fcinfo, 5), "timeout");
  const Param max_workers = optional_count(argument(fcinfo, 6), "max_workers", kMostWorkers);
  const Value backoff = argument(fcinfo, 8);
  if (backoff.null) check::fail_null("max_backoff");
  const Param max_backoff = optional_interval(backoff, "max_backoff");
  const std::string_view on_dead = text_of(argument(fcinfo, 9), "on_dead");
  check::one_of("on_dead", on_dead, "skip", "block");
  const int priority = int_of(argument(fcinfo, 10), "priority");
  check::priority("priority", priority);
  const Param keep = optional_interval(argument(fcinfo, 11), "keep");

  const Shape shape = shape_of(function, leased);
  if (leased && shape != Shape::kBatch && !batch_size.null && DatumGetInt32(batch_size.value) != 1)
    check::fail("batch_size", std::to_string(DatumGetInt32(batch_size.value)),
                "must be 1 or NULL for a leased handler that takes one message");
  const Oid caller = GetUserId();
  const Oid run_as = PG_ARGISNULL(7) ? caller : PG_GETARG_OID(7);
  const std::string run_as_name = role_name(run_as);
  if (!may_become(caller, run_as))
    throw Error("42501",
                mq::format("must be a member of role \"{}\" to register a handler that runs as it", run_as_name));
  if (!may_connect(run_as, leased))
    throw Error("22023", mq::format("invalid run_as: \"{}\"", run_as_name),
                "run_as must be a role with LOGIN: workers connect as it.");
  check_may_connect(MyDatabaseId, run_as);
  const std::string signature = guard::call([&] { return format_procedure_qualified(function); });
  check_handler_rights(function, run_as, leased);

  const OwnerScope scope;
  const SpiConnection spi;
  enabled::enable_if_empty();
  const std::optional<Uuid> enabled_id = enabled::lock_id();
  const Datum name = text_datum(channel);
  // Held to commit: the next registration for the channel name waits, and sees this one.
  locks::lock_registration(channel_key(channel, {}));
  check_is_own(caller, name, message_name, "replace it");
  static Statement others(
      "SELECT r.rolname::text, h.mode" WITH_ROLES("JOIN") " AND h.message_name IS DISTINCT FROM $2 LIMIT 1",
      {TEXTOID, TEXTOID});
  const Rows other = others.run({name, message_name});
  const auto same_as_others = [&](std::string_view field, std::string_view value, int column) {
    const std::string_view theirs = other.empty() ? value : text_view(other.get(0, column));
    if (theirs != value)
      check::fail(field, value,
                  mq::format("must be \"{}\", as for the other handlers of channel \"{}\"", theirs, channel));
  };
  same_as_others("run_as", run_as_name, 1);
  same_as_others("mode", mode, 2);

#define COLUMNS                                                                                                 \
  "(channel_name, message_name, handler, mode, batch_size, timeout, max_workers, run_as, max_backoff, on_dead," \
  " priority, enabled_id, run_as_oid, keep)"
#define UPSERT                                                                \
  "INSERT INTO $S.mq_handlers " COLUMNS                                       \
  " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON " \
  "CONFLICT "
#define REPLACE                                                                                           \
  " DO UPDATE SET handler = $3, mode = $4, batch_size = $5, timeout = $6, max_workers = $7, run_as = $8," \
  " max_backoff = $9, on_dead = $10, priority = $11, enabled_id = $12, run_as_oid = $13, keep = $14"
#define TYPES                                                                                                  \
  {                                                                                                            \
    TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, INTERVALOID, INT4OID, TEXTOID, INTERVALOID, TEXTOID, INT4OID, \
        UUIDOID, OIDOID, INTERVALOID                                                                           \
  }
  static Statement for_name(UPSERT "(channel_name, message_name) WHERE message_name IS NOT NULL" REPLACE, TYPES);
  static Statement for_any(UPSERT "(channel_name) WHERE message_name IS NULL" REPLACE, TYPES);
  (message_name.null ? for_any : for_name)
      .run({name, message_name, text_datum(signature), text_datum(mode), batch_size, timeout, max_workers,
            text_datum(run_as_name), max_backoff, text_datum(on_dead), Int32GetDatum(priority),
            enabled_id ? Param(uuid_datum(*enabled_id)) : Param(), ObjectIdGetDatum(run_as), keep});
  Extension::registry_changed();
  note_changed(channel);
  commit_actions::announce();
  commit_actions::wake(channel);
  if (!enabled::here()) enabled::say_waits();
}

bool unregister_handler(FunctionCallInfo fcinfo) {
  static Statement remove(
      "DELETE FROM $S.mq_handlers h WHERE h.channel_name = $1 AND h.message_name IS NOT DISTINCT FROM $2 RETURNING 1",
      {TEXTOID, TEXTOID});
  const Value channel = argument(fcinfo, 0);
  const std::string_view name = text_of(channel, "channel_name");
  const Param message_name = PG_ARGISNULL(1) ? Param() : Param(PG_GETARG_DATUM(1));
  const Oid caller = GetUserId();
  const OwnerScope scope;
  const SpiConnection spi;
  locks::lock_registration(channel_key(name, {}));
  check_is_own(caller, channel.datum, message_name, "unregister it");
  const bool removed = !remove.run({channel.datum, message_name}).empty();
  if (removed) {
    Extension::registry_changed();
    note_changed(name);
    commit_actions::announce();
  }
  return removed;
}

bool set_paused(FunctionCallInfo fcinfo, Statement& statement) {
  const Value channel = argument(fcinfo, 0);
  const std::string_view name = text_of(channel, "channel_name");
  check::name("channel_name", name);
  const Oid caller = GetUserId();
  const OwnerScope scope;
  const SpiConnection spi;
  check_is_own(caller, channel.datum, std::nullopt, "pause or resume its channel");
  if (statement.run({channel.datum}).empty()) return false;
  Extension::registry_changed();
  note_changed(name);
  commit_actions::announce();
  commit_actions::wake(name);
  return true;
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_register_handler_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_register_handler()");
    mq::register_handler(fcinfo);
    return Datum{0};
  });
}

extern "C" Datum mq_handler_function_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    const Oid function = mq::function_of(mq::text_view(PG_GETARG_DATUM(0)));
    fcinfo->isnull = !OidIsValid(function);
    return ObjectIdGetDatum(function);
  });
}

extern "C" Datum mq_handler_trouble_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    const Oid function = mq::function_of(mq::text_view(PG_GETARG_DATUM(0)));
    const bool leased = mq::text_view(PG_GETARG_DATUM(2)) == "leased";
    try {
      if (OidIsValid(function)) {
        mq::check_schema_rights(function, PG_GETARG_OID(1));
        mq::check_handler_rights(function, PG_GETARG_OID(1), leased);
        (void)mq::shape_of(function, leased);
      }
    } catch (const mq::Error& error) {
      return mq::text_datum(error.message);
    }
    fcinfo->isnull = true;
    return Datum{0};
  });
}

extern "C" Datum mq_unregister_handler_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_unregister_handler()");
    return BoolGetDatum(mq::unregister_handler(fcinfo));
  });
}

extern "C" Datum mq_pause_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_pause()");
    static mq::Statement pause(
        "INSERT INTO $S.mq_paused (channel_name) VALUES ($1) ON CONFLICT DO NOTHING RETURNING channel_name", {TEXTOID});
    return BoolGetDatum(mq::set_paused(fcinfo, pause));
  });
}

extern "C" Datum mq_resume_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_resume()");
    static mq::Statement resume("DELETE FROM $S.mq_paused WHERE channel_name = $1 RETURNING channel_name", {TEXTOID});
    return BoolGetDatum(mq::set_paused(fcinfo, resume));
  });
}

extern "C" Datum mq_announce_entry(FunctionCallInfo) {
  return mq::guard::entry([] {
    mq::commit_actions::announce();
    // The extension may have another version now: look it up again, here and in other processes.
    mq::Extension::look_again();
    mq::Extension::extension_changed();
    return Datum{0};
  });
}

extern "C" void mq_object_dropped(Oid class_id, Oid object_id) {
  if (class_id != ExtensionRelationId) return;
  const char* name = get_extension_name(object_id);
  if (name == nullptr || strcmp(name, "mq") != 0) return;
  mq::guard::callback([] { mq::commit_actions::announce(); });
}
