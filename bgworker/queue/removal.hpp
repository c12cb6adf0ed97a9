// Removal: deletes messages, and gives each ordered channel that lost its head its next one.
//
// Settling (settle.cpp), mq_delete, mq_clear, mq_redrive and the sweep use it. It owns no state: row
// locks hold the messages, and the commit actions get wake-ups, marks and row counts.
//
// All need an OwnerScope and an SPI connection. They throw 27000 where a trigger, rule or policy keeps
// rows as they are. They wait for sessions that have locked the rows; in a worker's own settling for
// row_locks::kMostWait at most, and then throw 55P03.
#pragma once

#include <vector>

#include "pg/statement.hpp"
#include "queue/message.hpp"

namespace mq {

// Messages as they were claimed, for a query over unnest($1, $2, $3) AS r (id, seq, key): a handler may have
// deleted one of its batch and sent a new one under that id, with another sequence number. The key of
// the channel says where the message is, for a table that is spread over nodes by it.
struct ClaimedRows {
  ArrayParam ids{UUIDOID}, numbers{INT8OID}, keys{INT8OID};
  std::size_t size = 0;

  void add(const Claimed& message) {
    ids.add(uuid_datum(message.id));
    numbers.add(Int64GetDatum(message.seq));
    keys.add(Int64GetDatum(message.channel_key));
    ++size;
  }
};

#define IS_CLAIMED "m.id = r.id AND m.seq = r.seq AND m.channel_key = r.key"

// How many of the messages still exist.
std::size_t count_there(const ClaimedRows& rows);

// Locks the rows of messages that were claimed without a lock (shmem/row_claims.hpp), before they are
// changed or copied; `to_remove`: before they are removed. Throws 55P03 (row_locks::was_held()) if another
// session has one.
void lock_claimed(const std::vector<const Claimed*>& messages, bool to_remove = false);

// Messages that this transaction has claimed. Passes over those that handlers have removed.
void remove_claimed(const std::vector<const Claimed*>& messages);
// The same by their ids, since their rows have changed after the claim.
void remove_dead_lettered(const std::vector<const Claimed*>& messages);

// Messages by their ids. `consumed`: the caller has handled the leased ones. They count as handled,
// and dead letters of leases that ran out meanwhile are removed.
void remove_messages(const std::vector<Uuid>& ids, bool consumed = false);
// The same for those that are dead and block their channels (on_dead => 'block').
void remove_blocking(const std::vector<Uuid>& ids);
// All messages of these channel names (text[]; a null Param: of all).
void clear_messages(const Param& channel_names);

}  // namespace mq
