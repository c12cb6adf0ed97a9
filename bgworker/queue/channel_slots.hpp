// Channel slots: how many have messages of a channel name at once (max_workers of its handlers): workers
// and mq_run (worker/batch_claim.cpp), leased calls (leased/lease_store.cpp) and consumers outside that
// have called mq_receive (api/receiving.cpp).
//
//   a worker, mq_run   holds a slot, an advisory lock, to the end of its transaction
//   a leased call      counts in shared memory (shmem/leased_calls.hpp)
//   mq_receive         holds a slot to the end of its transaction, then counts by its lease, until that
//                      runs out or its last message is settled
//
// A slot that becomes a lease is free before anybody can tell that from one that was given up. So whoever
// takes a slot looks for leases after it has it, with a new snapshot. One session at a time does that
// for a name, lest two find each other and both give up.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "pg/types.hpp"

namespace mq {

class ChannelSlots {
 public:
  // `several`: each take() is for another slot. Otherwise a slot that the transaction has is taken again.
  explicit ChannelSlots(bool several) : several_(several) {}

  // Takes one of the channel name's `most` slots until release() or the end of the transaction.
  // `of_all`: max_workers of its handlers, at least `most`; 0: they have none, and only workers count.
  // False: others have all of them. Needs a transaction and an SPI connection.
  bool take(std::string_view channel_name, int most, int of_all);
  // Releases the slot that was taken last for the channel name.
  void release(std::string_view channel_name);

 private:
  const bool several_;
  std::map<std::string, int, std::less<>> taken_;  // the slot taken last
};

// How many leased calls may run on the channel name, of `of_all`, beside those that have slots and the
// consumers outside. Hold the name's SlotsLock meanwhile, and until the call is entered.
int left_for_leased_calls(std::string_view channel_name, int of_all);
// How many have messages of the channel name, beside this session; `of_all`: how many may. For mq_limits.
int calls_on(std::string_view channel_name, int of_all);

}  // namespace mq
