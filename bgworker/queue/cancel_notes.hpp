// Cancel notes: the rows of mq_cancelled. mq_cancel writes one for each message that is cancelled while a
// worker has its row locked (queue/cancel.cpp); whoever settles the message next moves it to the dead letters
// and deletes the note. Claims mark noted messages with it, settle() asks. docs/internals/cancelling.md
// has the races.
//
// A note is for one message: for its id and its sequence number. The state is of this process, for the
// current transaction.
#pragma once

#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "queue/settlement.hpp"

namespace mq::cancel_notes {

inline constexpr const char* kReason = "cancelled";
inline constexpr const char* kSqlstate = "57014";

// Reads the notes, before a claim takes its snapshot. Costs nothing while there are none. Needs an
// OwnerScope and an SPI connection, like the others.
void begin_claim();
// The reason that a note which begin_claim() has read gives for the message; nullptr: there is none. It lives
// to the end of the transaction.
const std::string* of(const Uuid& id, std::int64_t seq);
// Whether another transaction, still open, cancels the message.
bool is_open(const Uuid& id, std::int64_t seq);

// Those of the messages that are noted by now.
std::unordered_set<Uuid, UuidHash> noted(const Batch& messages);
void write(const Uuid& id, std::int64_t seq, std::string_view why);
void remove(const std::vector<DeadLetter>& dead_letters);

// Adds the noted ones of the messages as dead letters.
void add_dead_letters(const std::vector<const Claimed*>& messages, Settlement& settlement);

// Before a settlement is carried out: whether one of its messages is cancelled. Then returns what is to
// be carried out in its place. Throws 55P03 (row_locks::was_held()) where the transaction has to be rolled
// back: a handler's effects are in it, or another transaction, still open, cancels the message.
std::optional<Settlement> heed(const Settlement& settlement);
// The same before messages are leased.
void refuse_cancelled(const std::vector<const Claimed*>& messages);

// Locks messages of all channels that are noted, and returns them; notes of messages that there are not
// any more go. At most `limit`.
void find(int limit, Batch& batch);

}  // namespace mq::cancel_notes
