#include "shmem/receivers.hpp"

#include <algorithm>

#include "pg/guard.hpp"
#include "shmem/layout.hpp"

extern "C" {
#include "miscadmin.h"
#include "storage/ipc.h"
}

namespace mq::shared {

namespace {

WaitingReceiver* mine_in_table = nullptr;  // of this process; set by Receiver

struct ReceiversLock : LightweightLock {
  ReceiversLock() : LightweightLock(state->receivers_lock, LW_EXCLUSIVE) {}
};

pg_atomic_uint32& count_of(Oid database) {
  return state->audiences[database % kAudiences].receivers;
}

std::span<WaitingReceiver> used_receivers() {
  return {state->receivers, state->receivers_used};
}

bool is_free(const WaitingReceiver& receiver) {
  return receiver.database == InvalidOid;
}

// Whether the receiver wants the name. `surely`: false if it may be a mistake of the filter.
bool wants(const WaitingReceiver& receiver, std::int64_t name_key, bool& surely) {
  surely = true;
  if (receiver.all) return true;
  if (receiver.names_held < 0) {
    surely = false;
    return receiver.filter.may_have(name_key);
  }
  return std::find(receiver.names, receiver.names + receiver.names_held, name_key) !=
         receiver.names + receiver.names_held;
}

void wake(WaitingReceiver& receiver, std::int64_t name_key) {
  receiver.woken = true;
  receiver.woken_for = name_key;
  SetLatch(&receiver.process->procLatch);
}

// The receivers of this database, from the one behind the last that was woken on. Those that keep
// time come last: each time that one of them leaves, another has to look. Under the lock.
template <class Body>
void for_each_receiver(Body&& body) {
  const std::size_t count = state->receivers_used;
  for (const bool keepers : {false, true})
    for (std::size_t i = 0; i < count; ++i) {
      WaitingReceiver& receiver = state->receivers[(state->next_receiver + i) % count];
      if (receiver.database != MyDatabaseId || receiver.keeper != keepers) continue;
      if (!body(receiver)) return;
    }
}

// Wakes receivers for messages that are due. Under the lock.
void wake_for(std::int64_t name_key, std::int64_t messages) {
  std::size_t last = state->receivers_used;
  for_each_receiver([&](WaitingReceiver& receiver) {
    bool surely = true;
    if (receiver.woken || !wants(receiver, name_key, surely)) return true;
    wake(receiver, name_key);
    last = static_cast<std::size_t>(&receiver - state->receivers);
    if (surely) messages -= receiver.batch_size;
    return messages > 0;
  });
  if (last < state->receivers_used) state->next_receiver = (last + 1) % state->receivers_used;
}

// Gives the role of a keeper that has left to another receiver of its group. Under the lock.
void hand_over(Oid database, std::uint64_t group) {
  for (WaitingReceiver& receiver : used_receivers()) {
    if (receiver.database != database || receiver.group != group) continue;
    receiver.keeper = true;
    receiver.due = kNever;
    if (!receiver.woken) wake(receiver, 0);
    return;
  }
}

void leave() {
  if (mine_in_table == nullptr) return;
  const ReceiversLock lock;
  const WaitingReceiver left = *mine_in_table;
  *mine_in_table = {};
  mine_in_table = nullptr;
  while (state->receivers_used > 0 && is_free(state->receivers[state->receivers_used - 1])) --state->receivers_used;
  if (state->next_receiver >= state->receivers_used) state->next_receiver = 0;
  pg_atomic_fetch_sub_u32(&count_of(left.database), 1);
  if (left.keeper) hand_over(left.database, left.group);
  if (left.woken && left.woken_for != 0) wake_for(left.woken_for, 1);
}

void process_ends(int, Datum) {
  leave();
}

std::uint64_t group_of(const std::vector<std::int64_t>& names) {
  std::uint64_t group = 0x6d71;
  for (const std::int64_t name : names)
    group = (group ^ static_cast<std::uint64_t>(name)) * 0x9e3779b97f4a7c15 + (group >> 29);
  return group;
}

}  // namespace

Receiver::Receiver(const std::optional<std::vector<std::int64_t>>& names, int batch_size) {
  static bool registered = false;
  if (mine_in_table != nullptr) return;
  if (!registered) {
    guard::call([] { before_shmem_exit(process_ends, 0); });
    registered = true;
  }
  WaitingReceiver entry{};
  entry.database = MyDatabaseId;
  entry.process = MyProc;
  entry.batch_size = batch_size;
  entry.all = !names.has_value();
  entry.due = kNever;
  if (names) {
    std::vector<std::int64_t> sorted = *names;
    std::sort(sorted.begin(), sorted.end());
    entry.group = group_of(sorted);
    entry.names_held = sorted.size() <= kReceiverNames ? static_cast<int>(sorted.size()) : -1;
    for (std::size_t i = 0; i < sorted.size(); ++i) {
      if (entry.names_held >= 0) entry.names[i] = sorted[i];
      entry.filter.add(sorted[i]);
    }
  }
  const ReceiversLock lock;
  const auto is_mate = [&](const WaitingReceiver& other) {
    return other.database == entry.database && other.group == entry.group;
  };
  entry.keeper = std::none_of(used_receivers().begin(), used_receivers().end(), is_mate);
  std::size_t at = 0;
  while (at < state->receivers_used && !is_free(state->receivers[at])) ++at;
  if (at == kReceivers) return;
  state->receivers_used = std::max(state->receivers_used, at + 1);
  state->receivers[at] = entry;
  mine_in_table = &state->receivers[at];
  entered_ = true;
  pg_atomic_fetch_add_u32(&count_of(MyDatabaseId), 1);
}

Receiver::~Receiver() {
  if (entered_) leave();
}

bool Receiver::is_keeper() const {
  const ReceiversLock lock;
  return mine_in_table->keeper;
}

bool Receiver::is_alone() const {
  return pg_atomic_read_u32(&count_of(MyDatabaseId)) <= 1;
}

void Receiver::begin_look() {
  const ReceiversLock lock;
  mine_in_table->woken = false;
  mine_in_table->due = kNever;
}

bool Receiver::may_sleep(Micros due) {
  const ReceiversLock lock;
  mine_in_table->due = due;
  return !mine_in_table->woken;
}

void Receiver::leave_more(const std::vector<std::int64_t>& names) {
  const ReceiversLock lock;
  const bool woken = mine_in_table->woken;
  mine_in_table->woken = true;  // so that it is passed over
  for (const std::int64_t name : names) wake_for(name, 1);
  mine_in_table->woken = woken;
}

// A commit that is visible by now reads the number after that: see the head of the header.
bool any_receivers() {
  if (!available()) return false;
  pg_memory_barrier();
  return pg_atomic_read_u32(&count_of(MyDatabaseId)) > 0;
}

void wake_receivers(std::int64_t name_key, Micros due, Micros now, std::int64_t messages) {
  const ReceiversLock lock;
  if (due <= now) {
    wake_for(name_key, messages);
    return;
  }
  for (WaitingReceiver& receiver : used_receivers()) {
    bool surely = true;
    if (receiver.database != MyDatabaseId || !receiver.keeper || receiver.woken || receiver.due <= due) continue;
    if (wants(receiver, name_key, surely)) wake(receiver, name_key);
  }
}

void wake_all_receivers() {
  if (!any_receivers()) return;
  const ReceiversLock lock;
  for (WaitingReceiver& receiver : used_receivers())
    if (receiver.database == MyDatabaseId && !receiver.woken) wake(receiver, 0);
}

}  // namespace mq::shared
