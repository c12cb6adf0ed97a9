// Whole lives of leased queues at random: calls that fail, conflict, hang, are slow or break their
// session; refused connections, workers that come and go, errors of the server, clocks that are set.
// The test checks the promises at the end, the fake sessions on the way. The seed is the parameter
// of the test, and so a part of its name.
#include <map>
#include <random>

#include "leased_fixture.hpp"

namespace mq::fake {
namespace {

class LeasedSimulation : public testing::TestWithParam<std::uint64_t> {
 protected:
  int below(int end) { return static_cast<int>(random() % static_cast<std::uint64_t>(end)); }
  bool chance(int percent) { return below(100) < percent; }

  static void add_handlers(FakeWorker& worker) {
    for (const char* name : {"single", "batch", "few", "blocking"}) {
      Handler& handler = worker.add_handler(name, name == std::string("batch") ? Shape::kBatch : Shape::kMessage);
      handler.batch_size = handler.shape == Shape::kBatch ? 4 : 1;
      handler.timeout = 5 * kSecond;
      handler.max_backoff = 10 * kSecond;
      if (name == std::string("few")) handler.max_workers = 2;
      handler.block_on_dead = name == std::string("blocking");
    }
  }

  Script random_script() {
    Script script;
    constexpr Micros kCosts[] = {0, 1, kMillisecond, 300 * kMillisecond, 2 * kSecond, 20 * kSecond};
    script.cost = kCosts[below(chance(20) ? 6 : 5)];
    switch (below(12)) {
      case 0:
        script.failures = chance(50) ? kAlways : 1 + below(4);
        break;
      case 1:
        script.conflicts = 1 + below(15);
        break;
      case 2:
        script.flaky = 0.3;
        break;
      case 3:
        script.fails_when_shared = true;
        break;
      case 4:
        script.breaks = 1 + below(3);
        break;
      case 5:
        script.stubborn = true;
        break;
      case 6:
        script.snoozes = 1 + below(3);
        break;
      default:
        break;
    }
    return script;
  }

  void send_all() {
    const std::vector<std::string> names{"single", "batch", "few", "blocking"};
    for (int i = 30 + below(60); i > 0; --i) {
      const int channel = below(6);
      Message message{.channel_name = names[static_cast<std::size_t>(below(4))],
                      .channel_args = std::to_string(channel),
                      .ordered = channel < 3,
                      .retries = below(4),
                      .retry_backoff = below(3) * kSecond,
                      .delay = chance(80) ? 0 : below(20) * kSecond,
                      .script = random_script()};
      if (chance(5)) message.expires = 1 + below(30) * kSecond;
      const Uuid id = table.send(message);
      sent[id] = message;
      if (chance(3)) unspeakable.insert(id);
    }
    for (int i = below(4); i > 0; --i) backends.refusals.emplace_back("53300", "too many clients");
    backends.connect_takes = below(3) * 100 * kMillisecond;
  }

  // One worker after another. Each is told to end at some point; some must not wait for what runs.
  void run_to_the_end() {
    for (int life = 0;; ++life) {
      const bool last = life >= 6;
      FakeWorker worker(backends);
      add_handlers(worker);
      worker.store.sessions = 1 + below(5);
      worker.store.unspeakable = unspeakable;
      worker.waits_to_leave = chance(50) || last;
      table.refusals.clear();
      for (auto* errors : {&worker.store.lease_errors, &worker.store.settle_errors, &table.refusals})
        for (int i = last ? 0 : below(3); i > 0; --i) errors->emplace_back("53100", "disk full");
      if (life > 0 && chance(30)) report_crash();
      if (!last) {
        worker.ends = [&, left = 5 + below(60)]() mutable {
          if (chance(2)) clock.set((below(3) - 1) * 5 * kSecond);
          return --left < 0;
        };
      }
      worker.run();
      EXPECT_TRUE(backends.sessions.empty() || !worker.waits_to_leave);
      if (last) return;
    }
  }

  // The leases without a call were cut short by the server's end.
  void report_crash() {
    std::map<std::int64_t, Uuid> lost;
    for (const auto& [id, row] : table.rows)
      if (row.lease > 0 && !table.has_call(row.lease)) lost[row.lease] = id;
    for (const auto& [token, id] : lost)
      table.aborted_calls.push_back({.message = id, .messages = static_cast<int>(lost.size()), .token = token});
  }

  void check_message(const Uuid& id, const Message& message) {
    if (const Row* row = table.find(id); row != nullptr) {
      EXPECT_TRUE(message.ordered && table.head_of(*row).blocks) << "left behind";
      EXPECT_EQ(row->lease, 0);
    } else if (table.died(id) == 0) {
      EXPECT_GE(backends.finished[id], 1) << "gone, but never handled";
    }
    EXPECT_LE(table.died(id), 1);
    int attempts = 0;
    for (const FailedAttempt& failed : table.failures)
      if (failed.id == id) {
        EXPECT_EQ(failed.attempt, ++attempts);
      }
    EXPECT_LE(attempts, message.retries + 1);
    for (const Dead& dead_letter : table.dead)
      if (dead_letter.id == id && dead_letter.reason == "exhausted") {
        EXPECT_EQ(dead_letter.attempts, message.retries + 1);
      }
    if (unspeakable.contains(id) && table.find(id) == nullptr) {
      EXPECT_EQ(table.died(id), 1);
    }
  }

  std::mt19937_64 random{GetParam()};
  FakeClock clock{GetParam()};
  FakeTable table{clock};
  Backends backends{table, clock};
  std::map<Uuid, Message> sent;
  std::set<Uuid> unspeakable;
};

TEST_P(LeasedSimulation, EachMessageIsHandledOrDeadAndNoLeaseIsLeft) {
  send_all();
  run_to_the_end();
  for (const auto& [id, message] : sent) {
    SCOPED_TRACE("seq " + std::to_string(id.bytes[15]) + " of " + message.channel_name);
    check_message(id, message);
  }
  EXPECT_TRUE(table.calls.empty());
  EXPECT_TRUE(backends.sessions.empty());
  EXPECT_FALSE(table.is_open);
}

INSTANTIATE_TEST_SUITE_P(Seed, LeasedSimulation, testing::Range<std::uint64_t>(1, 101),
                         [](const auto& seed) { return std::to_string(seed.param); });

}  // namespace
}  // namespace mq::fake
