// Dispositions: mq_snooze and mq_discard, a handler's decisions about its message.
//
// Handlers call them through mq.c. The disposition of a transactional handler is noted in the
// current call (queue/current_call.hpp) and carried out when its batch is settled. The disposition
// of a leased handler settles the message at once, in the handler's own transaction; its worker, or
// mq_run, then finds the lease gone. The file owns no state. A row lock holds the message.

#include <string>

#include "entries.h"
#include "handlers/policy.hpp"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/kept.hpp"
#include "pg/statement.hpp"
#include "queue/commit_actions.hpp"
#include "queue/current_call.hpp"
#include "queue/find.hpp"
#include "queue/settle.hpp"
#include "shmem/leased_calls.hpp"

namespace mq {

namespace {

// Settles the message of a leased call, or (`any`) all its messages. Throws 55000 if this session
// runs no leased call or the lease is gone, and 22023 if the call was not given the message.
void settle_here(const Disposition& disposition, bool any) {
  const auto handled = shared::handled_here();
  if (!handled)
    throw Error("55000", mq::format("{} must be called by a handler", name_of(disposition.kind)),
                "It says what is to become of the message that the handler was called with.");
  refuse_read_only(name_of(disposition.kind));
  const OwnerScope scope;
  const SpiConnection spi;
  // Waits for sessions that have locked one of the messages, and looks again: they may keep it.
  static Statement wait(
      "SELECT m.id FROM $S.mq_msgs m WHERE m.lease = $1 AND m.lease > 0 ORDER BY m.id FOR NO KEY UPDATE", {INT8OID});
  Batch batch;
  while (!find_leased(handled->token, batch)) {
    batch.clear();
    wait.run({Int64GetDatum(handled->token)});
  }
  if (batch.empty())
    throw Error("55000", mq::format("{}: the handler has no message any more", name_of(disposition.kind)),
                "It was settled before, or its lease is lost.");
  Settlement settlement;
  for (const Claimed& message : batch) {
    if (!any && message.id != disposition.id) continue;
    settle_disposition(message, disposition, handled->block_on_dead, GetCurrentTimestamp(), settlement);
    commit_actions::wake(message.channel_name);
  }
  if (settlement.snoozes.empty() && settlement.dead_letters.empty()) throw not_of_the_call(disposition.kind);
  settle(settlement);
}

Datum take_disposition(FunctionCallInfo fcinfo, Disposition disposition) {
  const bool any = PG_ARGISNULL(1);
  if (!any) disposition.id = uuid_of(PG_GETARG_DATUM(1));
  if (!note_disposition(disposition, any)) settle_here(disposition, any);
  return Datum{0};
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_snooze_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    const mq::Micros delay = mq::interval_of(mq::argument(fcinfo, 0), "delay", GetCurrentTimestamp());
    return mq::take_disposition(fcinfo, {mq::Disposition::kSnooze, {}, delay, {}});
  });
}

extern "C" Datum mq_discard_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    const std::string reason = mq::kept(mq::text_of(mq::argument(fcinfo, 0), "reason"));
    return mq::take_disposition(fcinfo, {mq::Disposition::kDiscard, {}, 0, reason});
  });
}
