// Low water: the low-water marks of this database's channel names and ordered channels, in shared
// memory (low_water_marks.hpp). Claims, appends, head links, skip scans and commit actions call it.
//
// State::name_marks and State::channel_marks are tables of sets. One of State::mark_locks, chosen
// by the key, covers each set; no code under it can raise an error. Without shared memory there are
// no marks, and scans start at the beginning. Functions that take a name need a transaction;
// begin_claim(), begin_wait() and check() also need an OwnerScope.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>

#include "pg/types.hpp"
#include "shmem/low_water_marks.hpp"

namespace mq::low_water {

inline constexpr std::int64_t kFirstSeq = INT64_MIN;
inline constexpr Position kNone = LowWaterMarks::kBeginning;

// The name's key in the table. It is another one after DROP and CREATE EXTENSION.
std::uint64_t key_of(std::string_view channel_name);
// Each priority of a name has a mark of its own; that of 0 has the name's key.
std::uint64_t key_of(std::string_view channel_name, int priority);

// Where a scan of the name's due messages of this priority may begin; kNone without a mark.
Position start(std::string_view channel_name, int priority);
// A claim took so many of them.
void taken(std::string_view channel_name, int priority, int messages);

// For the beginning of a claim: each half mq.poll_interval a search from the beginning for each
// priority of these names, as check() makes it. In short steps, of which each claim makes one at most.
void begin_claim(std::span<const std::string_view> channel_names);
// Before a worker waits: such a search to its end, no more often, unless is_wanted() says that the
// worker has something else to do. It is asked before each step.
void begin_wait(std::span<const std::string_view> channel_names, const std::function<bool()>& is_wanted);

// A name and priority of which so many messages were taken that its mark should be raised.
struct ToRaise {
  std::uint64_t key;
  LowWaterMarks::Ticket ticket;
};
// Asked before the scan of a claim begins at start(). None also once the transaction has written:
// it does not see what it deleted, which is left if it rolls back.
std::optional<ToRaise> to_raise(std::string_view channel_name, int priority);
// The scan has met no message below `first`, locked or not.
void raise(const ToRaise& name, Position first);

// Searches from the beginning unless that costs too much, and lowers marks that were too high.
// True: there were some.
bool check(std::span<const std::string_view> channel_names);

// For the commit callback: this transaction made a message due at `position`.
void lower(std::uint64_t key, Position position);

// Marks of ordered channels: no message is left with a sequence number below the channel's mark.
// Appends have ascending numbers, so they only raise it, under the append lock. A restore writes
// old numbers, so these marks are checked, too.
std::uint64_t key_of(std::string_view channel_name, std::string_view channel_args);
std::int64_t channel_start(std::uint64_t key);  // kFirstSeq without a mark
// Whether it is time to search from the beginning. If so, the caller searches, and tells how many
// µs that took and the tail's sequence number.
bool begin_channel_check(std::uint64_t key);
void end_channel_check(std::uint64_t key, Micros took, std::optional<std::int64_t> tail);
// For the commit callback: this transaction wrote the first message of an empty channel at `seq`.
void channel_was_empty(std::uint64_t key, std::int64_t seq);

}  // namespace mq::low_water
