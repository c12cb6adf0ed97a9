// What the rates of channels let begin now, and whether shared memory has had room for all: mq_rate_state and
// mq_limits_without_room. mq.c calls them, for views, mq_health() and mq_why(). The file owns no state.

#include "queue/rates.hpp"
#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/result_set.hpp"
#include "pg/statement.hpp"
#include "queue/limits.hpp"
#include "shmem/channel_use.hpp"

extern "C" Datum mq_rate_state_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    for (const mq::rates::State& state : mq::rates::states())
      result.add({mq::text_datum(state.channel_name), state.at ? mq::Param(Int32GetDatum(state.ready)) : mq::Param(),
                  state.at ? mq::Param(TimestampTzGetDatum(*state.at)) : mq::Param()});
    return Datum{0};
  });
}

extern "C" Datum mq_limits_without_room_entry(FunctionCallInfo fcinfo) {
  const mq::Micros at = mq::shared::limits_without_room();
  if (at == 0) PG_RETURN_NULL();
  PG_RETURN_TIMESTAMPTZ(at);
}
