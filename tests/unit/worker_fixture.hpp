// A worker over a fake server, for the tests of its loop.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "fake_server.hpp"
#include "worker.hpp"

namespace mq::fake {

class WorkerTest : public testing::Test {
 protected:
  std::int64_t run_until_empty(std::optional<std::int64_t> most = std::nullopt) {
    return worker.run_until_empty(most, nullptr);
  }

  // Each was handled once and never failed.
  void expect_handled(const std::vector<Uuid>& ids) const {
    for (const Uuid& id : ids) {
      EXPECT_EQ(table.handled(id), 1);
      EXPECT_EQ(table.failed(id), 0);
    }
  }

  Handler& add_handler(const std::string& channel_name, Shape shape = Shape::kJson,
                       std::optional<std::string> message_name = std::nullopt) {
    return session.host.add_handler(channel_name, shape, std::move(message_name));
  }

  FakeClock clock;
  Table table{clock};
  Session session{table, clock};
  FakeHost& host = session.host;
  FakeHandlers& caller = session.caller;
  FakeTransaction& transaction = session.transaction;
  const std::vector<FakeTransaction::Record>& history = session.transaction.history;
  Worker worker{session.ports()};
};

}  // namespace mq::fake
