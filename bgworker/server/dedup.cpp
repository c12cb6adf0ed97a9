#include "dedup.hpp"

#include <vector>

#include "../claim.hpp"
#include "claim_source.hpp"
#include "enabled.hpp"
#include "fence.hpp"
#include "handler_call.hpp"
#include "settle.hpp"
#include "shared.hpp"
#include "spi.hpp"

namespace mq {

namespace {

struct Holder {
  Uuid id;
  std::int64_t place;
  bool uncommitted;
  bool spent;  // will not be delivered any more, unless somebody handles it or commits it at this moment
};

std::optional<Holder> find_holder(const DedupKey& wanted) {
  static Statement find(
      "SELECT m.id, m.place, m.commit_interval IS NOT NULL, (m.attempt_at <= t.now OR m.attempt_at = 'infinity')"
      "         AND (m.commit_interval IS NOT NULL OR COALESCE(m.expires_at <= t.now, false))"
      "  FROM $S.mq_msgs m CROSS JOIN pg_catalog.clock_timestamp() AS t (now)"
      " WHERE m.channel_key = $1 AND m.dedup_key = $2 AND m.channel_name = $3 AND m.channel_args = $4",
      {INT8OID, TEXTOID, TEXTOID, TEXTOID});
  const Rows rows = find.run({Int64GetDatum(wanted.channel_key), text_datum(wanted.key),
                              text_datum(wanted.channel_name), text_datum(wanted.channel_args)});
  if (rows.empty()) return std::nullopt;
  return Holder{uuid_of(rows.get(0, 1)), DatumGetInt64(rows.get(0, 2)), DatumGetBool(rows.get(0, 3)),
                DatumGetBool(rows.get(0, 4))};
}

// As the server does for ON CONFLICT DO NOTHING: nothing is left out for a message that the transaction cannot see.
void refuse_stale_snapshot(const Uuid& id) {
  if (!IsolationUsesXactSnapshot()) return;
  static Statement visible("SELECT m.id FROM $S.mq_msgs m WHERE m.id = $1", {UUIDOID});
  Snapshot own = fence::call([] { return GetTransactionSnapshot(); });
  if (visible.run({uuid_datum(id)}, own).empty())
    throw Error("40001",
                "could not serialize access: a message with this dedup_key was sent by a concurrent transaction", "",
                "The transaction might succeed if retried.");
}

// The message that this very call handles gives its key up to what the call sends; with the call's (sub)transaction, so
// it has it again if that fails. False: it is not of this call.
bool give_up_key(const Uuid& id, std::int64_t place) {
  static Statement give_up("UPDATE $S.mq_msgs m SET dedup_key = NULL WHERE m.id = $1 RETURNING 1", {UUIDOID});
  static Statement give_up_leased(
      "UPDATE $S.mq_msgs m SET dedup_key = NULL WHERE m.id = $1 AND m.lease = $2 RETURNING 1", {UUIDOID, INT8OID});
  if (is_of_the_call(id, place)) return !give_up.run({uuid_datum(id)}).empty();
  const auto handled = shared::handled_here();
  return handled && !give_up_leased.run({uuid_datum(id), Int64GetDatum(handled->token)}).empty();
}

// False: somebody has it locked, or it is not there any more.
bool settle_spent(const Uuid& id) {
  SqlClaimSource source;
  Batch batch;
  std::vector<int> crashes;
  source.named({&id, 1}, batch, crashes);
  if (batch.empty()) return false;
  const Claimed& message = batch.front();
  // While a dump is restored the payload may still come.
  if (!message.uncommitted && !message.has_payload && !enabled::here_at_last()) return false;
  const Micros now = GetCurrentTimestamp();
  const bool later = message.attempt_at > now && message.attempt_at != kNever;
  if (later || (!message.uncommitted && message.expires_at > now)) return true;  // it has changed
  Settlement settlement;
  dispose(batch, now, settlement);
  note_changed({&id, 1});
  SqlSettler().settle(settlement);
  return true;
}

}  // namespace

std::optional<Uuid> find_pending(const DedupKey& wanted, bool free_own_key) {
  static Statement wait("SELECT m.id FROM $S.mq_msgs m WHERE m.id = $1 FOR NO KEY UPDATE", {UUIDOID});
  for (std::optional<Uuid> held;;) {
    const std::optional<Holder> holder = find_holder(wanted);
    if (!holder) return std::nullopt;
    if (free_own_key && give_up_key(holder->id, holder->place)) continue;
    // Expired while a handler runs: it may still be handled.
    if (!holder->spent || held == holder->id) {
      refuse_stale_snapshot(holder->id);
      return holder->id;
    }
    if (settle_spent(holder->id)) continue;
    if (holder->uncommitted)
      wait.run({uuid_datum(holder->id)});
    else
      held = holder->id;
  }
}

}  // namespace mq
