// Fairness: which messages have an entry in mq_msgs_fair, from which a claim takes its fair sample.
// The sender and settling decide it (column `fair`). Needs a transaction and an OwnerScope.
//
// All messages of a channel name without channel_args are one channel. While no other channel has
// messages of that name, oldest first is fair, and the entry would be written for nothing:
//   1. A message with channel_args has one.
//   2. One without has one if it may be overtaken: it is due later, or comes again after a failure or
//      a snooze, or other channels of the name have messages.
// What is due at once and was sent before others came is ahead of them anyway.
//
// Sender A (no channel_args) and sender B (with) of one name, which nobody has sent to so far:
//   A  reads the name's state: unknown. Searches mq_msgs_fair: no entry of another channel.
//   B  sets the state to keyed, then inserts.
//   A  sets the state to plain, unless it has changed since A read it.
// B sets the state again after its INSERT: by then a search finds its entries.
#pragma once

#include <string_view>

namespace mq::fairness {

// Whether a message of the name without channel_args that is due at once needs an entry.
bool needs_entry(std::string_view channel_name);
// Whether the name is known to have no other channel: oldest first is fair then.
bool is_one_channel(std::string_view channel_name);
// Messages of the name with channel_args are about to be inserted, or have been.
void has_channels(std::string_view channel_name);

}  // namespace mq::fairness
