// Limits of channels: mq_limit, mq_unlimit, and what is used of them, for the view mq_limits.
//
// Sessions call them through mq.c. The file owns no state: the limits are rows of mq_channel_limits, which
// queue/limits.cpp caches.

#include <optional>
#include <string>
#include <string_view>

#include "api/own_handlers.hpp"
#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/error.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/result_set.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/channel_slots.hpp"
#include "queue/commit_actions.hpp"
#include "queue/current_call.hpp"
#include "queue/pending_limit.hpp"
#include "queue/put_off.hpp"
#include "stats/row_counts.hpp"

extern "C" {
#include "catalog/pg_type.h"
}

namespace mq {

namespace {

constexpr std::int64_t kMostPending = 1'000'000'000'000'000;
constexpr int kMostRunning = 1000;
constexpr int kMostCalls = 1'000'000;  // that begin in a second

Param optional_count(const Value& value, std::string_view field, int most) {
  if (value.null) return {};
  check::count(field, DatumGetInt32(value.datum), 1, most);
  return value.datum;
}

// Waiting workers and receivers look again, with the new limits. What the old ones have put off is due again.
void limits_changed(std::string_view channel_name) {
  release_put_off(channel_name);
  note_changed(channel_name);
  commit_actions::announce();
  commit_actions::wake(channel_name);
}

void check_catalog() {
  if (!OidIsValid(Extension::limits())) throw Extension::get().needs_update();
}

struct Rate {
  Param rate, per;
  bool per_args;
};

Rate rate_of(const Value& rate, const Value& per, const Value& per_args) {
  Rate result{{}, {}, !per_args.null && DatumGetBool(per_args.datum)};
  const std::string per_text = per.null ? "" : interval_text(per.datum);
  if (rate.null) {
    if (!per.null) check::fail("per", per_text, "must be NULL without rate");
    if (result.per_args) check::fail("rate_per_args", "true", "must be NULL or false without rate");
    return result;
  }
  Micros length = kSecond;
  if (!per.null) {
    length = interval_of(per, "per", GetCurrentTimestamp());
    check::positive("per", per_text, length);
  }
  const std::int64_t calls = DatumGetInt32(rate.datum);
  check::count("rate", calls, 1, INT32_MAX);
  // rate / length > kMostCalls / kSecond
  if (calls > length / (kSecond / kMostCalls))
    check::fail("rate", std::to_string(calls), mq::format("must not be more than {} calls a second", kMostCalls));
  result.rate = rate.datum;
  result.per = interval_datum(length);
  return result;
}

void limit(FunctionCallInfo fcinfo) {
  static Statement upsert(
      "INSERT INTO $S.mq_channel_limits (channel_name, max_pending, max_running, max_running_per_args, rate, per,"
      "                                  rate_per_args) VALUES ($1, $2, $3, $4, $5, $6, $7)"
      " ON CONFLICT (channel_name) DO UPDATE SET max_pending = $2, max_running = $3, max_running_per_args = $4,"
      "   rate = $5, per = $6, rate_per_args = $7",
      {TEXTOID, INT8OID, INT4OID, INT4OID, INT4OID, INTERVALOID, BOOLOID});
  check_catalog();
  const Value channel = argument(fcinfo, 0);
  const std::string_view name = text_of(channel, "channel_name");
  check::name("channel_name", name);
  Param max_pending;
  if (!PG_ARGISNULL(1)) {
    check::count("max_pending", PG_GETARG_INT64(1), 0, kMostPending);
    max_pending = PG_GETARG_DATUM(1);
  }
  const Param max_running = optional_count(argument(fcinfo, 2), "max_running", kMostRunning);
  const Param max_running_per_args = optional_count(argument(fcinfo, 3), "max_running_per_args", kMostRunning);
  const Rate rate = rate_of(argument(fcinfo, 4), argument(fcinfo, 5), argument(fcinfo, 6));
  if (max_pending.null && max_running.null && max_running_per_args.null && rate.rate.null)
    throw Error("22023", mq::format("no limit is given for channel \"{}\"", name), "",
                "Give one of max_pending, max_running, max_running_per_args and rate. mq_unlimit() takes the limits of "
                "a channel away.");
  const Oid caller = GetUserId();
  const OwnerScope scope;
  const SpiConnection spi;
  check_is_own(caller, channel.datum, std::nullopt, "limit its channel");
  Extension::limits_changed();
  upsert.run({channel.datum, max_pending, max_running, max_running_per_args, rate.rate, rate.per,
              BoolGetDatum(rate.per_args)});
  limits_changed(name);
}

bool unlimit(FunctionCallInfo fcinfo) {
  static Statement remove("DELETE FROM $S.mq_channel_limits l WHERE l.channel_name = $1 RETURNING 1", {TEXTOID});
  check_catalog();
  const Value channel = argument(fcinfo, 0);
  const std::string_view name = text_of(channel, "channel_name");
  check::name("channel_name", name);
  const Oid caller = GetUserId();
  const OwnerScope scope;
  const SpiConnection spi;
  check_is_own(caller, channel.datum, std::nullopt, "take the limits of its channel away");
  Extension::limits_changed();
  if (remove.run({channel.datum}).empty()) return false;
  limits_changed(name);
  return true;
}

void show_use(ResultSet& result) {
  static Statement select(
      "SELECT l.channel_name, l.max_pending IS NOT NULL, l.max_running FROM $S.mq_channel_limits l"
      " ORDER BY l.channel_name",
      {});
  const OwnerScope scope;
  const SpiConnection spi;
  const Rows rows = select.run({});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::string name(text_view(rows.get(i, 1)));
    Param pending, sending, running;
    if (DatumGetBool(rows.get(i, 2))) {
      const pending_limit::Use use = pending_limit::use_of(name);
      pending = Int64GetDatum(use.pending);
      if (row_counts::available()) sending = Int64GetDatum(use.sending);
    }
    bool null = false;
    const Datum max_running = rows.get(i, 3, null);
    if (!null) running = Int32GetDatum(calls_on(name, DatumGetInt32(max_running)));
    result.add({text_datum(name), pending, sending, running});
  }
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_limit_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_limit()");
    mq::limit(fcinfo);
    return Datum{0};
  });
}

extern "C" Datum mq_unlimit_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_unlimit()");
    return BoolGetDatum(mq::unlimit(fcinfo));
  });
}

extern "C" Datum mq_limit_use_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    mq::show_use(result);
    return Datum{0};
  });
}
