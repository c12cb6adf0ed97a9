// Find: locks messages by what is known of them, and appends them to a batch. Charges, exclusive
// calls, leased handlers, deduplication, mq_snooze, mq_discard and the sweep use it. No state.
//
// All but find_received() and wait_for_claims() lock to the end of the transaction, and pass over messages that other
// sessions have locked, so they wait for nothing. They need a transaction and an SPI connection, and take the
// OwnerScope.
#pragma once

#include <span>
#include <vector>

#include "pg/statement.hpp"
#include "queue/message.hpp"

namespace mq {

// The messages with these ids; for each that is found, how many attempts are proven to have crashed
// the server since its last mq_checkpoint.
void find_named(std::span<const Uuid> ids, Batch& batch, std::vector<int>& crashes);
// Those of the messages with these ids that are due heads.
void find_due(std::span<const Uuid> ids, Micros now, Batch& batch);
// A leased call's messages, as they were before the attempt was charged. False: other sessions have
// locked some of them.
bool find_leased(std::int64_t token, Batch& batch);
// Those of the messages with these ids (sorted) that mq_receive has leased with this token, and whose
// lease has not run out; as they were before the attempt was charged. Locks them to the end of the
// transaction; `to_remove`: for their removal. Waits for sessions that have locked them: their leases have
// not run out, so no claim has. Needs an OwnerScope.
Batch find_received(std::span<const Uuid> ids, std::int64_t token, bool to_remove);
// Of all channels: two-phase messages that were not committed in time, and messages without an
// attempt left whose last lease has run out.
void find_exhausted(Micros now, int limit, Batch& batch);
// Of all channels: expired messages, but for those that are being handled.
void find_expired(Micros now, int limit, Batch& batch);

// Those of the messages with these ids that wait for others (prerequisites.hpp). Locks them for their
// removal.
void find_waiting(std::span<const Uuid> ids, Batch& batch);

// Drops from `undeliverable` the messages that another session holds FOR KEY SHARE: a DELETE would
// wait, though the claim did not. A later claim settles them. True: it dropped some. Needs an OwnerScope.
bool leave_held(Batch& undeliverable);

// Waits until the workers that handle one of the messages without having locked its row
// (shmem/row_claims.hpp) have committed or rolled back, as for a row lock: mq_delete, say, finds a
// message that was handled meanwhile gone. Needs an OwnerScope and an SPI connection.
void wait_for_claims(const std::vector<Uuid>& ids);
// The same for the messages of these channel names (text[]; a null Param: of all).
void wait_for_claims_of(const Param& channel_names);

}  // namespace mq
