// A worker with leased channels over fake sessions.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "fake_leases.hpp"
#include "worker.hpp"

namespace mq::fake {

// One worker process.
struct LeasedSession : Session {
  LeasedSession(Backends& backends, Table& table, FakeClock& clock)
      : Session(table, clock), store(backends, *this), leased({clock, transaction, queue, queue, store}) {
    host.ready_at = [&backends](const auto& sockets) { return backends.ready_at(sockets); };
  }

  Worker::Ports ports() {
    Worker::Ports ports = Session::ports();
    ports.leased = &leased;
    return ports;
  }

  FakeLeaseStore store;
  LeasedHandlers leased;
};

class LeasedTest : public testing::Test {
 protected:
  Handler& add_leased(const std::string& channel_name = "l", Shape shape = Shape::kJson) {
    Handler& handler = session.host.add_handler(channel_name, shape);
    handler.leased = true;
    handler.batch_size = shape == Shape::kBatch ? 5 : 1;
    return handler;
  }

  Uuid send(Message message) {
    if (message.channel_name == "c") message.channel_name = "l";
    return table.send(message);
  }
  std::vector<Uuid> send(int count, const Message& message) {
    std::vector<Uuid> ids;
    for (int i = 0; i < count; ++i) ids.push_back(send(message));
    return ids;
  }

  void run() {
    worker.run();
    EXPECT_TRUE(backends.sessions.empty()) << "a session is left open";
    EXPECT_TRUE(table.leases.empty()) << "a lease is left";
    EXPECT_FALSE(session.transaction.is_open());
    EXPECT_TRUE(table.locks.empty());
  }
  void run_for(Micros time) {
    host.wants_end = [this, end = clock.time + time] { return clock.time >= end; };
    run();
  }

  int calls_of(const Uuid& id) const {
    return static_cast<int>(std::count_if(backends.calls.begin(), backends.calls.end(), [&](const auto& call) {
      return std::find(call.begin(), call.end(), id) != call.end();
    }));
  }
  std::ptrdiff_t hurried_waits() const { return std::count(host.waits.begin(), host.waits.end(), 0); }

  FakeClock clock;
  Table table{clock};
  Backends backends{table, clock};
  LeasedSession session{backends, table, clock};
  FakeHost& host = session.host;
  FakeLeaseStore& store = session.store;
  Worker worker{session.ports()};
  const Micros start = clock.time;
};

}  // namespace mq::fake
