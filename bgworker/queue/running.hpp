// Running: how many unordered messages of a channel are handled at once (max_running_per_args of mq_limit). Claims,
// what begins calls, settling and removal use it.
//
//   claim   puts off the messages of a channel of which as many run as may
//   call    take(): just before it begins, or a consumer gets its messages, those count as running
//   end     once they have ended the oldest of those that were put off are due again
//
// A message runs while the transaction is in progress that has taken it (a count in shared memory, channel_use.hpp),
// and while it is leased (its row). A transaction that leases it has it counted until its row can be seen. So who takes
// one adds to the count, and then looks for rows with a new snapshot; one session at a time for a channel name.
//
// A worker handles the messages of its batch one after another. So it counts one for a channel, to the end of its
// transaction, however many of it are in the batch; a batch handler has as many in a call as may run.
//
// No wake-up is lost between one that is put off (by B) and one that ends (A):
//   B  finds as many running as may; notes that the channel is waited for; puts its message off; commits
//   B  after its COMMIT, asks for the channel
//   A  after its COMMIT, asks for the channel if it is waited for
// Whoever claims next looks at the channels that are asked for (serve()). If A was too early to know of B, B asks after
// A has ended. The sweep looks at all of them now and then, and each comes back by itself after a while.
//
// Where the library is not preloaded there is no shared memory: such messages are left alone, as with a rate
// (rates.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string_view>

#include "queue/message.hpp"

namespace mq::running {

// All need a transaction, and but for ended() an OwnerScope or none, and an SPI connection. Without limits each costs
// a comparison.

// The messages of one call are about to be handled. Returns how many of them may be, from the first on. `one_by_one`:
// the calls before it in this transaction are over. Else they run as well.
std::size_t take(std::span<const Claimed* const> messages, bool one_by_one);
// The same for messages of any channel names, each of which is handled on its own: removes those that may not.
void take(Batch& messages);
// How many unordered messages of each channel are there, by its key (low_water.hpp); of names with such a limit only.
std::map<std::uint64_t, int> count(const Batch& messages);
// Of messages that take() has let through, only those that are left are handled. `taken`: count() of them all.
void give_back(const std::map<std::uint64_t, int>& taken, const Batch& left);

// Takes those out of a claim that may not be handled now, and puts them off; returns how many. `one_by_one`: they are
// handled one after another.
std::size_t put_off(Batch& messages, Micros now, bool one_by_one);

// A message of the channel has ended: it was handled, put off or removed.
void ended(std::string_view channel_name, std::string_view channel_args, std::int64_t channel_key);

// At the beginning of a claim from these names: makes messages due that waited for others, where those have ended;
// returns how many. `one_by_one` as above. If it is rolled back, the channels are asked for again.
std::size_t serve(std::span<const std::string_view> channel_names, bool one_by_one);
// The same for some of the channels that have messages that wait, whether they are asked for or not. True: some are
// due now.
bool sweep();

}  // namespace mq::running
