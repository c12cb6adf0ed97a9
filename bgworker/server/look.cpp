// Looking: what only the processes know, for the views mq_workers and mq_health().

#include "arguments.hpp"
#include "entries.h"
#include "result_set.hpp"
#include "shared.hpp"
#include "spi.hpp"

extern "C" {
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
}

namespace {

// What a worker of another database handles is for those who see all of pg_stat_activity; and a name there may be in
// another encoding.
bool shows_message(const mq::shared::WorkerState& worker) {
  if (worker.database == MyDatabaseId) return true;
  const char* name = worker.channel_name.data();
  const auto bytes = static_cast<int>(worker.channel_name.size());
  return mq::fence::call([&] {
    return has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS) &&
           pg_verify_mbstr(GetDatabaseEncoding(), name, bytes, true);
  });
}

}  // namespace

extern "C" Datum mq_worker_seats_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::WorkerState& worker : mq::shared::workers()) {
      const char* database = mq::fence::call([&] { return get_database_name(worker.database); });
      const bool busy = worker.in_call && !worker.waiting;
      const bool shown = busy && shows_message(worker);
      result.add({Int32GetDatum(worker.pid), database != nullptr ? mq::Param(mq::text_datum(database)) : mq::Param(),
                  ObjectIdGetDatum(worker.role),
                  mq::text_datum(worker.waiting ? "waiting"
                                 : busy         ? "handling"
                                                : "active"),
                  shown ? mq::Param(mq::text_datum(worker.channel_name)) : mq::Param(),
                  shown ? mq::Param(mq::uuid_datum(worker.message)) : mq::Param(), TimestampTzGetDatum(worker.since),
                  Int64GetDatum(static_cast<int64>(worker.handled))});
    }
    return Datum{0};
  });
}

extern "C" Datum mq_leased_calls_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::LeasedCallState& call : mq::shared::leased_calls())
      result.add({Int32GetDatum(call.backend), ObjectIdGetDatum(call.role), Int64GetDatum(call.token),
                  TimestampTzGetDatum(call.since)});
    return Datum{0};
  });
}

extern "C" Datum mq_connection_refusals_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::Refusal& refusal : mq::shared::refusals())
      result.add({ObjectIdGetDatum(refusal.role), mq::text_datum(refusal.text)});
    return Datum{0};
  });
}

extern "C" Datum mq_server_mode_entry(FunctionCallInfo) {
  return mq::fence::entry([] {
    return mq::text_datum(!IsPostmasterEnvironment ? "single-user" : RecoveryInProgress() ? "standby" : "primary");
  });
}

extern "C" Datum mq_unsettled_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::UnsettledMessage& message : mq::shared::unsettled())
      result.add({mq::uuid_datum(message.message), mq::text_datum(message.channel_name), mq::text_datum(message.error),
                  TimestampTzGetDatum(message.until), Int32GetDatum(message.times)});
    return Datum{0};
  });
}

extern "C" Datum mq_service_state_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::ResultSet result(fcinfo);
    const mq::shared::ServiceState state = mq::shared::service();
    result.add({BoolGetDatum(mq::shared::available()), BoolGetDatum(state.launcher), BoolGetDatum(state.served),
                BoolGetDatum(state.out_of_slots),
                state.failed_starts > 0 ? mq::Param(ObjectIdGetDatum(state.failing_role)) : mq::Param(),
                Int32GetDatum(state.failed_starts)});
    return Datum{0};
  });
}
