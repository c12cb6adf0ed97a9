// Due: asks which messages are due, and when the next ones are. Locks nothing. Workers, mq_run,
// mq_poll and leased handlers ask. No state. Needs a transaction and an SPI connection. While the rate of
// a channel name lets no call begin (rates.hpp), none of its messages counts as due.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pg/types.hpp"

namespace mq {

// Whether any head of the channel name is due, locked or not.
bool is_due(std::string_view channel_name, Micros now);
// The same, whatever its rate says.
bool any_due(std::string_view channel_name, Micros now);
// How many heads of the channel name are due, locked or not; `limit` at most.
int count_due(std::string_view channel_name, Micros now, int limit);
// When the channel name's first head is due; none if no head will ever be due.
std::optional<Micros> next_due(std::string_view channel_name);
// The same among the heads that are due after `after`.
std::optional<Micros> next_due(std::string_view channel_name, Micros after);
// When the next message has to be dead-lettered as expired: at the later of its expiry and the end
// of its lease.
std::optional<Micros> next_expiry(Micros now);
// The names of all channels that have a head.
std::vector<std::string> channel_names();
// Whether the message exists, locked or not.
bool is_pending(const Uuid& id);

}  // namespace mq
