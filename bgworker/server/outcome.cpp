// What a handler says of its message: mq_snooze, mq_discard.
//
// A transactional handler's wish is noted and heeded when its batch is settled. A leased handler runs in a session of
// its own: there the wish settles the message in the handler's own transaction, and the worker finds the lease gone.

#include <string>

#include <fmt/core.h>

#include "../policy.hpp"
#include "arguments.hpp"
#include "claim_source.hpp"
#include "entries.h"
#include "extension.hpp"
#include "handler_call.hpp"
#include "kept.hpp"
#include "ledger.hpp"
#include "settle.hpp"
#include "shared.hpp"
#include "spi.hpp"

namespace mq {

namespace {

void settle_here(const Wish& wish, bool any) {
  const auto handled = shared::handled_here();
  if (!handled)
    throw Error("55000", fmt::format("{} must be called by a handler", name_of(wish.kind)),
                "It says what is to become of the message that the handler was called with.");
  refuse_read_only(name_of(wish.kind));
  const OwnerScope scope;
  const SpiConnection spi;
  // What somebody has locked is waited for: it may be there still when that one is done.
  static Statement wait(
      "SELECT m.id FROM $S.mq_msgs m WHERE m.lease = $1 AND m.lease > 0 ORDER BY m.id FOR NO KEY UPDATE", {INT8OID});
  SqlClaimSource source;
  Batch batch;
  while (!source.leased(handled->token, batch)) {
    batch.clear();
    wait.run({Int64GetDatum(handled->token)});
  }
  if (batch.empty())
    throw Error("55000", fmt::format("{}: the handler has no message any more", name_of(wish.kind)),
                "It was settled before, or its lease is lost.");
  Settlement settlement;
  for (const Claimed& message : batch) {
    if (!any && message.id != wish.id) continue;
    settle_wish(message, wish, handled->block_on_dead, GetCurrentTimestamp(), settlement);
    ledger::wake(message.channel_name);
  }
  if (settlement.snoozes.empty() && settlement.burials.empty()) throw not_of_the_call(wish.kind);
  SqlSettler().settle(settlement);
}

Datum heed(FunctionCallInfo fcinfo, Wish wish) {
  const bool any = PG_ARGISNULL(1);
  if (!any) wish.id = uuid_of(PG_GETARG_DATUM(1));
  if (!note_wish(wish, any)) settle_here(wish, any);
  return Datum{0};
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_snooze_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    const mq::Micros delay = mq::interval_of(mq::argument(fcinfo, 0), "delay", GetCurrentTimestamp());
    return mq::heed(fcinfo, {mq::Wish::kSnooze, {}, delay, {}});
  });
}

extern "C" Datum mq_discard_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    const std::string reason = mq::kept(mq::text_of(mq::argument(fcinfo, 0), "reason"));
    return mq::heed(fcinfo, {mq::Wish::kDiscard, {}, 0, reason});
  });
}
