// Sequences that are behind what they number: after a restore, or a setval by hand.
//
// All of it needs a transaction, an OwnerScope and an SPI connection.
#pragma once

#include <cstdint>
#include <functional>

#include "spi.hpp"

namespace mq::sequences {

// The next place of a message, or token of a lease: both are drawn from mq_place_seq.
std::int64_t next_place();

// Moves mq_place_seq beyond every place and token in the tables, and beyond `seen`.
void mend_places(std::int64_t seen);

// Inserts rows that the table numbers itself. Where the number is in use its sequence is moved beyond all of them, and
// the rows are inserted after all. Runs in a subtransaction, since that is noticed by the error.
enum class Numbered { kDead, kFailures };
Rows insert(Numbered table, const std::function<Rows()>& insert);

}  // namespace mq::sequences
