// Monitoring: what shared memory tells of the launcher, workers and leased calls.
//
// mq_workers, mq_health() and mq_why() call it through mq.c, in any session. The file owns no
// state: it gets copies from shmem/shared.hpp, which takes the lock.

#include <string>

#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/connects.hpp"
#include "pg/format.hpp"
#include "pg/result_set.hpp"
#include "pg/settings.h"
#include "pg/statement.hpp"
#include "shmem/activity.hpp"
#include "shmem/cancels.hpp"
#include "shmem/consumers.hpp"
#include "shmem/databases.hpp"
#include "shmem/failing.hpp"
#include "shmem/leased_calls.hpp"
#include "shmem/shared.hpp"
#include "shmem/worker_slots.hpp"

extern "C" {
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/timestamp.h"
}

namespace {

// Whether the caller may see what the worker handles. In another database that takes the rights of
// pg_read_all_stats, and a channel name that is valid in this database's encoding.
bool shows_message(const mq::shared::WorkerState& worker) {
  if (worker.database == MyDatabaseId) return true;
  const char* name = worker.channel_name.data();
  const auto bytes = static_cast<int>(worker.channel_name.size());
  return mq::guard::call([&] {
    return has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS) &&
           pg_verify_mbstr(GetDatabaseEncoding(), name, bytes, true);
  });
}

const char* name_of(mq::shared::Doing doing) {
  switch (doing) {
    case mq::shared::Doing::kSettling:
      return "settling";
    case mq::shared::Doing::kCommitting:
      return "committing";
    default:
      return "handling";
  }
}

}  // namespace

extern "C" Datum mq_worker_slots_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::WorkerState& worker : mq::shared::workers()) {
      const char* database = mq::guard::call([&] { return get_database_name(worker.database); });
      const bool busy = worker.doing != mq::shared::Doing::kBetween && !worker.waiting;
      const bool shown = busy && !worker.channel_name.empty() && shows_message(worker);
      result.add({Int32GetDatum(worker.pid), database != nullptr ? mq::Param(mq::text_datum(database)) : mq::Param(),
                  ObjectIdGetDatum(worker.role),
                  mq::text_datum(!worker.has_database_slot ? "leaving"
                                 : worker.waiting          ? "waiting"
                                 : busy                    ? name_of(worker.doing)
                                                           : "active"),
                  shown ? mq::Param(mq::text_datum(worker.channel_name)) : mq::Param(),
                  shown ? mq::Param(mq::uuid_datum(worker.message)) : mq::Param(), TimestampTzGetDatum(worker.since),
                  Int64GetDatum(static_cast<int64>(worker.handled))});
    }
    return Datum{0};
  });
}

extern "C" Datum mq_leased_calls_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::LeasedCallState& call : mq::shared::leased_calls())
      result.add({Int32GetDatum(call.backend), ObjectIdGetDatum(call.role), Int64GetDatum(call.token),
                  TimestampTzGetDatum(call.since)});
    return Datum{0};
  });
}

extern "C" Datum mq_cancelled_calls_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::CancelledCall& call : mq::shared::cancelled_calls())
      result.add({Int32GetDatum(call.pid),
                  call.channel_name.empty() ? mq::Param() : mq::Param(mq::text_datum(call.channel_name)),
                  TimestampTzGetDatum(call.since)});
    return Datum{0};
  });
}

extern "C" Datum mq_connection_refusals_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::Refusal& refusal : mq::shared::refusals())
      result.add({ObjectIdGetDatum(refusal.role), mq::text_datum(refusal.text)});
    return Datum{0};
  });
}

extern "C" Datum mq_server_mode_entry(FunctionCallInfo) {
  return mq::guard::entry([] {
    return mq::text_datum(!IsPostmasterEnvironment ? "single-user" : RecoveryInProgress() ? "standby" : "primary");
  });
}

extern "C" Datum mq_has_consumers_entry(FunctionCallInfo) {
  return mq::guard::entry([] { return BoolGetDatum(mq::shared::has_consumers()); });
}

extern "C" Datum mq_unsettled_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::UnsettledMessage& message : mq::shared::unsettled())
      result.add({mq::uuid_datum(message.message), mq::text_datum(message.channel_name), mq::text_datum(message.error),
                  TimestampTzGetDatum(message.until), Int32GetDatum(message.times)});
    return Datum{0};
  });
}

namespace {

const char* name_of(mq::Part part) {
  switch (part) {
    case mq::Part::kBatches:
      return "batches";
    case mq::Part::kLeasedCalls:
      return "leased calls";
    case mq::Part::kSweep:
      return "sweep";
    case mq::Part::kCharges:
      return "charges";
    case mq::Part::kSchedules:
      return "schedules";
    case mq::Part::kProcess:
      return "process";
    case mq::Part::kLauncher:
      return "launcher";
  }
  return "";
}

// The text, with '?' for each non-ASCII byte if it is not valid in this database's encoding: the
// launcher, and a worker that has not connected yet, know no encoding.
std::string readable(std::string text) {
  const char* bytes = text.data();
  const auto size = static_cast<int>(text.size());
  if (mq::guard::call([&] { return pg_verify_mbstr(GetDatabaseEncoding(), bytes, size, true); })) return text;
  for (char& c : text)
    if (static_cast<unsigned char>(c) >= 0x80) c = '?';
  return text;
}

}  // namespace

extern "C" Datum mq_failing_workers_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::Failing& f : mq::shared::failing())
      result.add({f.pid != 0 ? mq::Param(Int32GetDatum(f.pid)) : mq::Param(), ObjectIdGetDatum(f.role),
                  mq::text_datum(name_of(f.part)), TimestampTzGetDatum(f.since), TimestampTzGetDatum(f.last),
                  Int32GetDatum(f.times), mq::text_datum(f.sqlstate), mq::text_datum(readable(f.text))});
    return Datum{0};
  });
}

extern "C" Datum mq_service_state_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    const mq::shared::ServiceState state = mq::shared::service();
    result.add({BoolGetDatum(mq::shared::available()), BoolGetDatum(state.launcher), BoolGetDatum(state.served),
                BoolGetDatum(state.out_of_slots),
                state.failed_starts > 0 ? mq::Param(ObjectIdGetDatum(state.failing_role)) : mq::Param(),
                Int32GetDatum(state.failed_starts)});
    return Datum{0};
  });
}

namespace {

std::string role_name(Oid role) {
  if (!OidIsValid(role)) return "the bootstrap superuser";
  const char* name = mq::guard::call([&] { return GetUserNameFromId(role, true); });
  return name != nullptr ? name : mq::format("role {}", role);
}

// Says of a worker that it keeps its process only until its leased calls end.
std::string draining_named(const mq::shared::DrainingWorker& draining) {
  const char* database = mq::guard::call([&] { return get_database_name(draining.database); });
  const TimestampTz since = draining.since - draining.since % USECS_PER_SEC;
  return mq::format(
      "process {} as {} in database {} only waits for {} since {}", draining.pid, role_name(draining.role),
      database != nullptr ? database : "?",
      draining.calls == 1 ? "a leased call to end," : mq::format("{} leased calls to end, the first", draining.calls),
      mq::guard::call([&] { return timestamptz_to_str(since); }));
}

std::string slots_obstacle(const mq::shared::SlotState& slots) {
  if (slots.out_of_slots && slots.waiting > 0)
    return mq::format(
        "max_worker_processes = {} are in use: databases and roles take turns, {} have no worker now; "
        "raise it to at least {} and restart the server",
        max_worker_processes, slots.waiting, max_worker_processes + slots.waiting);
  if (slots.out_of_slots)
    return mq::format(
        "max_worker_processes = {} are in use: more workers would help with the backlog; raise it and restart the "
        "server",
        max_worker_processes);
  if (slots.out_of_worker_slots)
    return mq::format("{} workers run, more are not possible: lower mq.max_workers, or name fewer mq.databases",
                      mq::shared::most_workers());
  if (slots.pools_beyond)
    return "handlers run as more roles than there is room for: raise mq.max_databases and restart the server";
  return {};
}

}  // namespace

extern "C" Datum mq_obstacles_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    const auto add = [&](const char* check, const std::string& detail) {
      if (!detail.empty()) result.add({mq::text_datum(check), mq::text_datum(detail)});
    };
    const mq::shared::ServiceState state = mq::shared::service();
    if (state.beyond)
      add("database served", mq::format("mq.max_databases = {} others are served: raise it and restart the server, or "
                                        "name in mq.databases those to serve",
                                        mq_max_databases));
    else if (!state.served)
      add("database served", mq::serving_obstacle(MyDatabaseId));
    add("worker slots", slots_obstacle(state.slots));
    if (state.out_of_slots)
      for (const mq::shared::DrainingWorker& draining : mq::shared::draining_workers())
        add("worker slots", readable(draining_named(draining)));
    for (const mq::shared::FailingPool& pool : mq::shared::failing_pools()) {
      const std::string obstacle = mq::connect_obstacle(MyDatabaseId, pool.role);
      add("workers start", mq::format("as {}: {} times in a row a worker ended before it could serve; {}",
                                      role_name(pool.role), pool.failed_starts,
                                      !obstacle.empty()     ? obstacle
                                      : !pool.error.empty() ? readable(pool.error) + "; mend that"
                                                            : "see the server's log"));
    }
    return Datum{0};
  });
}
