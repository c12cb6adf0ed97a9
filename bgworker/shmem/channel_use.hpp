// Channel use: what is in use of the limits of channel names and channels, in shared memory: how many calls have
// begun (rate.hpp), and how many messages of a channel transactions in progress handle. queue/rates.cpp and
// queue/running.cpp call it. After a start of the server nothing is known: one burst more.
//
// State::limit_tables is a table in parts. The lock of a part is the one of its number; State::asked_lock covers
// the list of channels that somebody is to look at. No code under them can raise an error.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "pg/types.hpp"
#include "shmem/rate.hpp"

namespace mq::shared {

// All need shared memory. `key` tells database and channel name, or channel, apart from all others.

struct Readiness {
  int calls;  // how many may begin now
  Micros at;  // none: when the next may
};
Readiness rate_readiness(std::uint64_t key, const Rate& rate, Micros now);
// Begins up to so many calls; returns how many may begin.
int take_rate(std::uint64_t key, const Rate& rate, Micros now, int calls);

// Of a message whose channel has a rate of its own.
struct Turn {
  std::optional<Micros> until;  // it has to wait until then; none: it may begin now
  bool look = false;            // it is worth looking whether the messages with slots before it are there
};
struct Asker {
  int before;  // as Rate::may_begin() has them
  bool waited;
  bool wants_slot;  // if it may not begin now it gets a slot
};
Turn turn_of(std::uint64_t key, const Rate& rate, Micros now, const Asker& asker);
// See Rate::free_behind().
void free_slots_behind(std::uint64_t key, const Rate& rate, Micros last);

// How many messages of the channel transactions in progress handle, or have handled. None: there is no room to count
// any.
std::optional<int> running(std::uint64_t key);
// So many more, up to `most`; returns how many more.
int add_running(std::uint64_t key, int messages, int most);
// So many less. True: messages wait for that.
bool remove_running(std::uint64_t key, int messages);
// Whether messages of the channel wait until fewer run. Returns since when: no other call with true has returned the
// same for the channel; 0: none wait, or there is no room.
Micros set_waiting(std::uint64_t key, bool waiting);
// None wait any more, unless others have been put off after `since`, which set_waiting() has returned.
void stop_waiting(std::uint64_t key, Micros since);
bool is_waiting(std::uint64_t key);

// Channels that somebody is to look at: messages of them may be handled that have waited.
struct AskedFor {
  std::uint64_t key;
  std::int64_t name_key;     // channel_key() of the channel name and no arguments
  std::int64_t channel_key;  // of the channel
};
// Where the list is full it is left to the sweep. False: the channel has no room.
bool ask_for(const AskedFor& channel);
bool any_asked_for();  // in this database, perhaps; cheap
// Takes those of the names out of the list, and those of this database whose names are not `limited`; at most `most`.
// Both are sorted.
std::vector<AskedFor> take_asked_for(const std::vector<std::int64_t>& name_keys,
                                     const std::vector<std::int64_t>& limited, std::size_t most);

// When there was no room for another channel last; 0: not in the last hour.
Micros limits_without_room();

}  // namespace mq::shared
