// Sequences: numbers of messages and leases, and the repair of sequences that are behind what they
// number, as after a restore or a setval by hand. Sends, leases and settle call it. The state is in
// the sequences; locks::SequenceLock covers a repair.
//
// All functions need a transaction, an OwnerScope and an SPI connection.
#pragma once

#include <cstdint>
#include <functional>

#include "pg/statement.hpp"

namespace mq::sequences {

// The next sequence number of a message, or token of a lease: both come from mq_msgs_seq.
std::int64_t next_seq();
// The next number of a row of mq_failures.
std::int64_t next_failure();

// Moves mq_msgs_seq beyond every sequence number and token in the tables, and beyond `seen`.
void mend_numbers(std::int64_t seen);

// Runs `insert`, which adds rows that the table numbers itself. If a number is in use (23505),
// moves its sequence beyond all that are, and runs `insert` once more. Runs in a subtransaction,
// since only the error tells.
enum class Numbered { kDead, kFailures, kDone };
Rows insert(Numbered table, const std::function<Rows()>& insert);

}  // namespace mq::sequences
