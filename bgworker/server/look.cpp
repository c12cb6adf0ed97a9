// Looking: what only the processes know, for the views mq_workers and mq_health().

#include "arguments.hpp"
#include "entries.h"
#include "result_set.hpp"
#include "shared.hpp"
#include "spi.hpp"

extern "C" {
#include "commands/dbcommands.h"
}

extern "C" Datum mq_worker_seats_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::shared::WorkerState& worker : mq::shared::workers()) {
      const char* database = mq::fence::call([&] { return get_database_name(worker.database); });
      const bool busy = worker.in_call && !worker.waiting;
      result.add({Int32GetDatum(worker.pid), database != nullptr ? mq::Param(mq::text_datum(database)) : mq::Param(),
                  ObjectIdGetDatum(worker.role),
                  mq::text_datum(worker.waiting ? "waiting"
                                 : busy         ? "handling"
                                                : "active"),
                  busy ? mq::Param(mq::text_datum(worker.channel_name)) : mq::Param(),
                  busy ? mq::Param(mq::uuid_datum(worker.message)) : mq::Param(), TimestampTzGetDatum(worker.since),
                  Int64GetDatum(static_cast<int64>(worker.handled))});
    }
    return Datum{0};
  });
}

extern "C" Datum mq_service_state_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::ResultSet result(fcinfo);
    const mq::shared::ServiceState state = mq::shared::service();
    result.add({BoolGetDatum(mq::shared::available()), BoolGetDatum(state.launcher), BoolGetDatum(state.served),
                BoolGetDatum(state.out_of_slots)});
    return Datum{0};
  });
}
