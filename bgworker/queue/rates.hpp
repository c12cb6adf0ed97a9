// Rates: whether calls of a channel name may begin, where mq_limit has set a rate. A call is the delivery of a
// message: to a handler, also in a batch, or to a consumer outside. Claims, what asks when messages are due,
// and whatever begins calls use it. Shared memory has the state (shmem/channel_use.hpp), mq_channel_limits the limits.
//
//   claim    takes no more messages of a name than calls may begin now. With a rate per channel_args it puts off
//            each message whose channel may not have another call: the message is due again at a slot of its
//            own, and costs nothing until then
//   call     take() just before it begins; what is not granted is left, and claimed again later
//
// Where the library is not preloaded there is no shared memory, so no call of such a channel name begins, and a
// claim warns of that.
//
// All functions need a transaction. Without limits each costs a comparison.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "queue/message.hpp"

namespace mq::rates {

// How many of `most` calls of the channel name may begin now.
int room(std::string_view channel_name, int most, Micros now);
// When the next call of the channel name may begin: not before this, `due` or later. None: never.
std::optional<Micros> not_before(std::string_view channel_name, Micros due);
// Warns, once in a statement, that the channel name's limits cannot be kept.
void warn_without_memory(std::string_view channel_name);
// Whether the channel name has a rate or max_running_per_args that cannot be kept.
bool is_without_memory(std::string_view channel_name);

// The messages are about to be handled, in this order. Returns how many of them may be, from the first on.
std::size_t take(std::span<const Claimed* const> messages);
// The same for messages of any channel names: removes those that may not.
void take(Batch& messages);

// Takes out of a claim the messages whose channels may not have another call, and in ordered channels those behind
// them. Puts off those that are heads; returns how many. Needs an OwnerScope and an SPI connection.
std::size_t put_off(Batch& messages, Micros now);

// What the rates that are not per channel_args let begin now.
struct State {
  std::string channel_name;
  int ready;                 // so many calls
  std::optional<Micros> at;  // when the next may; none: the rate cannot be kept
};
std::vector<State> states();

}  // namespace mq::rates
