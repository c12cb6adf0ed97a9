// Marks: the low-water marks of this database's channel names in shared memory (mark_set.hpp says what they are).
// Without shared memory there are none: scans start at the beginning.
//
// The table is split into partitions, each under a lightweight lock of its own; nothing under it can raise an error.
// All but what is for the commit callback belongs into a transaction, an OwnerScope and an SPI connection.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "../message.hpp"

namespace mq::marks {

inline constexpr std::int64_t kFirstPlace = INT64_MIN;
inline constexpr Position kNone{INT64_MIN, kFirstPlace};  // before every message

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

// The same for ordered channels: nothing is left of a channel in places below its mark. Their messages are appended in
// ascending places, so these marks only rise; but a restore writes old places, so they are checked, too.
std::uint64_t key_of(std::string_view channel_name, std::string_view channel_args);
std::int64_t channel_start(std::uint64_t key);
// Whether the caller should look from the beginning; then it says how long that took, and the last place it found.
bool begin_channel_check(std::uint64_t key);
void end_channel_check(std::uint64_t key, Micros took, std::optional<std::int64_t> tail);
// For the commit callback of who found the channel empty and wrote its first message at `place`.
void channel_was_empty(std::uint64_t key, std::int64_t place);

}  // namespace mq::marks
