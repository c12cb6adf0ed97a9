// Validation of what a caller says about a message or a handler. Each check throws an Error that
// names the field, its value and the rule: 22004 for a NULL, 22023 for a value out of range. Pure;
// the SQL functions call it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "pg/types.hpp"

namespace mq::check {

inline constexpr std::size_t kNameBytes = 1024;                    // a channel's or a message's name
inline constexpr std::size_t kArgsBytes = 2048;                    // a channel's arguments
inline constexpr std::size_t kDedupBytes = 2600;                   // a dedup_key with its channel: fits an index
inline constexpr int kMostRetries = 2'147'483'646;                 // attempts is retries + 1
inline constexpr int kMostPriority = 1000;                         // the least is -kMostPriority
inline constexpr Micros kLongest = 36500LL * 24 * 3600 * kSecond;  // 100 years

// "channel_name", or "channel_name of message 3" in an array (counted from 1).
std::string field_of(std::string_view field, std::optional<std::size_t> message = std::nullopt);

// "element 3 of channel_names".
std::string element_of(std::string_view array, std::size_t element);

[[noreturn]] void fail_null(std::string_view field);
[[noreturn]] void fail(std::string_view field, std::string_view value, std::string_view rule);

void name(std::string_view field, std::string_view value, std::size_t most_bytes = kNameBytes);
// The names of the dedup_key's channel have `channel_bytes` bytes.
void dedup_key(std::string_view field, std::string_view value, std::size_t channel_bytes);
void retries(std::string_view field, std::int64_t value);
void priority(std::string_view field, std::int64_t value);
// `shown` is the value as the caller wrote it.
void duration(std::string_view field, std::string_view shown, Micros value, Micros most = kLongest);
void positive(std::string_view field, std::string_view shown, Micros value, Micros most = kLongest);
void count(std::string_view field, std::int64_t value, std::int64_t least, std::int64_t most);
void one_of(std::string_view field, std::string_view value, std::string_view a, std::string_view b);

}  // namespace mq::check
