// A worker's leased handlers over fake sessions: turns, and waits between them.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "fake_leases.hpp"

namespace mq::fake {

// The part of a worker's process that leased handlers need: it takes turns, and between them waits
// as Worker::run() does, until a socket is ready, a message is due or LeasedHandlers wants a turn.
struct FakeWorker {
  explicit FakeWorker(Backends& all) : backends(all), store(all), leased({all.clock, all.table, store}) {}

  Handler& add_handler(const std::string& channel_name = "c", Shape shape = Shape::kJson) {
    Handler handler;
    handler.channel_name = channel_name;
    handler.shape = shape;
    handler.batch_size = shape == Shape::kBatch ? 5 : 1;
    handler.max_backoff = 3600 * kSecond;
    handler.leased = true;
    registry.add(handler);
    return *registry.find(channel_name)->handlers.back();
  }

  // Works until ends() says so, which is asked in each wait. Then begins nothing and waits for what
  // runs, if it may.
  void run() {
    do wait(turn(false));
    while (!ends() && is_patient());
    while (leased.has_sessions() && is_patient()) {
      const Micros most = turn(true);
      if (!leased.has_sessions()) return;
      wait(most);
      if (!waits_to_leave) return;
    }
  }

  // Returns how long the worker may wait then.
  Micros turn(bool drain) {
    try {
      if (!drain && store.enabled) charge_and_release();
      const LeasedHandlers::Turn turn = leased.turn(registry, {.drain = drain});
      handled += turn.handled;
      more_is_due = more_is_due || turn.more_is_due;
      return turn.moved ? 0 : until_next_turn();
    } catch (const Error& error) {
      backends.table.rollback();
      store.warn(error);
      return kSecond;
    }
  }

  void charge_and_release() {
    FakeTable& table = backends.table;
    while (!table.aborted_calls.empty()) {
      const AbortedCall call = table.aborted_calls.front();
      const auto crashes = std::ranges::count_if(
          table.failures, [&](const auto& failed) { return failed.id == call.message && failed.crash; });
      table.begin();
      EXPECT_TRUE(leased.charge_crash(call, static_cast<int>(crashes), registry));
      table.commit();
      table.aborted_calls.erase(table.aborted_calls.begin());
    }
    if (backends.clock.steady() < release_at) return;
    table.begin();
    leased.release_orphans(registry);
    table.commit();
    release_at = backends.clock.steady() + interval;
  }

  Micros until_next_turn() const {
    Micros most = interval;
    if (leased.can_begin()) {
      // A message that is due and was not claimed is locked by another session, or may not begin.
      const Micros due_in = backends.table.next_due() - backends.clock.time;
      most = std::min(most, due_in > 0 ? due_in : kSecond / 10);
    }
    return std::min(most, leased.next_turn().value_or(most));
  }

  void wait(Micros most) {
    ++waits;
    if (most == 0) ++hurried;
    for (const Socket& socket : leased.sockets()) {
      const FakeSession* session = backends.find(socket.descriptor);
      ASSERT_NE(session, nullptr) << "a wait for a closed socket";
      most = std::clamp<Micros>(session->next_event() - backends.clock.steady(), 0, most);
    }
    backends.clock.time += most;
  }

  bool is_patient() const {
    EXPECT_LT(waits, 10'000) << "the worker does not come to an end";
    return waits < 10'000;
  }

  Backends& backends;
  Registry registry;
  FakeLeaseStore store;
  LeasedHandlers leased;
  std::function<bool()> ends = [this] { return backends.table.next_due() == kNever; };
  bool waits_to_leave = true;
  Micros interval = 5 * kSecond;  // the longest wait, and between two looks for orphans
  Micros release_at = 0;

  int waits = 0;
  int hurried = 0;  // waits of no time
  std::size_t handled = 0;
  bool more_is_due = false;  // a turn said so
};

class LeasedTest : public testing::Test {
 protected:
  Handler& add_handler(const std::string& channel_name = "c", Shape shape = Shape::kJson) {
    return worker.add_handler(channel_name, shape);
  }
  Uuid send(const Message& message) { return table.send(message); }
  std::vector<Uuid> send(int count, const Message& message) {
    std::vector<Uuid> ids;
    for (int i = 0; i < count; ++i) ids.push_back(send(message));
    return ids;
  }
  // A message whose call ended with the server or its worker, and was not settled.
  Uuid send_leased(const Message& message, std::int64_t token, int attempts = 1) {
    const Uuid id = send(message);
    Row& row = *table.find(id);
    row.lease = token;
    row.attempts = attempts;
    row.attempts_left -= attempts;
    row.attempt_at = clock.time + 20 * kSecond;
    table.last_token = std::max(table.last_token, token);
    return id;
  }

  void run() {
    worker.run();
    EXPECT_TRUE(backends.sessions.empty()) << "a session is left open";
    EXPECT_TRUE(table.calls.empty()) << "a lease is left";
    EXPECT_FALSE(table.is_open);
  }
  void run_for(Micros time) {
    worker.ends = [this, end = clock.time + time] { return clock.time >= end; };
    run();
  }

  FakeClock clock;
  FakeTable table{clock};
  Backends backends{table, clock};
  FakeWorker worker{backends};
  FakeLeaseStore& store = worker.store;
  const Micros start = clock.time;
};

}  // namespace mq::fake
