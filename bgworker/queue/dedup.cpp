#include "queue/dedup.hpp"

#include <vector>

#include "pg/guard.hpp"
#include "pg/statement.hpp"
#include "queue/claim.hpp"
#include "queue/current_call.hpp"
#include "queue/enabled.hpp"
#include "queue/find.hpp"
#include "queue/settle.hpp"
#include "queue/stale_snapshot.hpp"
#include "queue/undeliverable.hpp"
#include "shmem/leased_calls.hpp"

namespace mq {

namespace {

struct Holder {
  Uuid id;
  std::int64_t seq;
  bool uncommitted;
  bool exhausted;  // it will not be delivered, unless a session handles or commits it right now
};

std::optional<Holder> find_holder(const DedupKey& wanted) {
  static Statement find(
      "SELECT m.id, m.seq, m.commit_interval IS NOT NULL, (m.attempt_at <= t.now OR m.attempt_at = 'infinity')"
      "         AND (m.commit_interval IS NOT NULL OR COALESCE(m.expires_at <= t.now, false)), COALESCE(m.lease, 0)"
      "  FROM $S.mq_msgs m CROSS JOIN pg_catalog.clock_timestamp() AS t (now)"
      " WHERE m.channel_key = $1 AND m.dedup_key = $2 AND m.channel_name = $3 AND m.channel_args = $4",
      {INT8OID, TEXTOID, TEXTOID, TEXTOID});
  const Rows rows = find.run({Int64GetDatum(wanted.channel_key), text_datum(wanted.key),
                              text_datum(wanted.channel_name), text_datum(wanted.channel_args)});
  if (rows.empty()) return std::nullopt;
  // A leased call that goes on, or is about to be charged, may still handle a message that has expired.
  const std::int64_t lease = DatumGetInt64(rows.get(0, 5));
  const bool called = lease > 0 && shared::lease_has_call(lease);
  return Holder{uuid_of(rows.get(0, 1)), DatumGetInt64(rows.get(0, 2)), DatumGetBool(rows.get(0, 3)),
                DatumGetBool(rows.get(0, 4)) && !called};
}

bool clear_key(const Uuid& id) {
  static Statement clear("UPDATE $S.mq_msgs m SET dedup_key = NULL WHERE m.id = $1 RETURNING 1", {UUIDOID});
  return !clear.run({uuid_datum(id)}).empty();
}

// Clears the key of a message of the calling handler's call, so that the handler can send under it.
// A rollback of its (sub)transaction restores the key. False: the message is not of this call.
bool give_up_key(const Uuid& id, std::int64_t seq) {
  static Statement give_up_leased(
      "UPDATE $S.mq_msgs m SET dedup_key = NULL WHERE m.id = $1 AND m.lease = $2 RETURNING 1", {UUIDOID, INT8OID});
  if (is_of_the_call(id, seq)) return clear_key(id);
  const auto handled = shared::handled_here();
  return handled && !give_up_leased.run({uuid_datum(id), Int64GetDatum(handled->token)}).empty();
}

// Settles a message that will not be delivered; where messages are not handled it only loses its
// key. True: look for the key again. False: another
// session has the message locked, or it is gone.
bool settle_exhausted(const Uuid& id) {
  Batch batch;
  std::vector<int> crashes;
  find_named({&id, 1}, batch, crashes);
  if (batch.empty()) return false;
  const Claimed& message = batch.front();
  const Micros now = GetCurrentTimestamp();
  const bool later = message.attempt_at > now && message.attempt_at != kNever;
  if (later || (!message.uncommitted && message.expires_at > now)) return true;  // changed since
  note_changed({&id, 1});
  if (!enabled::still_here()) return clear_key(id);
  Settlement settlement;
  settle_undeliverable(batch, now, settlement);
  settle(settlement);
  return true;
}

}  // namespace

std::optional<Uuid> find_pending(const DedupKey& wanted, bool free_own_key) {
  static Statement wait("SELECT m.id FROM $S.mq_msgs m WHERE m.id = $1 FOR NO KEY UPDATE", {UUIDOID});
  for (std::optional<Uuid> held;;) {
    const std::optional<Holder> holder = find_holder(wanted);
    if (!holder) return std::nullopt;
    if (free_own_key && give_up_key(holder->id, holder->seq)) continue;
    // An expired message that could not be settled counts: a handler may be at it.
    if (!holder->exhausted || held == holder->id) {
      // As ON CONFLICT DO NOTHING does: rather than leave out a send for a message that the
      // transaction cannot see.
      refuse_stale_snapshot({&holder->id, 1},
                            "could not serialize access: a message with this dedup_key was sent by a concurrent "
                            "transaction");
      return holder->id;
    }
    if (settle_exhausted(holder->id)) continue;
    if (holder->uncommitted)
      wait.run({uuid_datum(holder->id)});
    else
      held = holder->id;
  }
}

}  // namespace mq
