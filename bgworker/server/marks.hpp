// Marks: the low-water marks of this database's channel names in shared memory (mark_set.hpp says what they are).
// Without shared memory there are none: scans start at the beginning.
//
// The table is split into partitions, each under a lightweight lock of its own; nothing under it can raise an error.
// All but `lower` belong into a transaction, an OwnerScope and an SPI connection.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "../message.hpp"

namespace mq::marks {

inline constexpr Position kNone{INT64_MIN, INT64_MIN};  // before every message

// The name's key in the table; another after DROP and CREATE EXTENSION.
std::uint64_t key_of(std::string_view channel_name);

// Where a scan of the name's due messages may begin.
Position start(std::string_view channel_name);
void taken(std::string_view channel_name, int messages);

// For the beginning of a claim: raises the marks of those names of which much was taken, and now and then looks
// from the beginning. Does not raise them once the transaction has written: it does not see what it deleted.
void raise(std::span<const std::string_view> channel_names);

// Looks from the beginning, if that does not cost too much. True: some mark was too high.
bool check(std::span<const std::string_view> channel_names);

// For the commit callback.
void lower(std::uint64_t key, Position position);

}  // namespace mq::marks
