// Whole lives of queues at random: failing, conflicting, slow and refused messages, ordered and
// not, for single and batch handlers, with a rival worker and errors of the server in between. What
// was promised is checked at the end, and by the fake server on the way. The seed is the parameter
// of the test, and so a part of its name.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "fake_server.hpp"
#include "worker.hpp"

namespace mq::fake {
namespace {

class Simulation : public testing::TestWithParam<std::uint64_t> {
 protected:
  Simulation() {
    const Shape blocking_shape = below(2) == 0 ? Shape::kJson : Shape::kBatch;
    for (Session* one : {&session, &rival}) {
      one->host.add_handler("single");
      one->host.add_handler("batch", Shape::kBatch).batch_size = 2 + below(30);
      one->host.add_handler("blocking", blocking_shape).block_on_dead = true;
      one->host.add_handler("mixed", Shape::kBatch, "x").batch_size = 1 + below(5);
      one->host.add_handler("mixed", Shape::kJson, "y").batch_size = 20;
      one->host.batch_limit = 1 + below(200);
    }
    table.blocks_as_registered = [](const Row& row) { return row.channel_name == "blocking"; };
  }

  int below(int end) { return static_cast<int>(random() % static_cast<std::uint64_t>(end)); }
  bool chance(int percent) { return below(100) < percent; }

  Script random_script() {
    Script script;
    constexpr Micros kCosts[] = {0, 0, 1, kMillisecond, 50 * kMillisecond, 300 * kMillisecond};
    script.cost = kCosts[below(6)];
    switch (below(16)) {
      case 0:
        script.failures = kAlways;
        break;
      case 1:
        script.failures = 1 + below(5);
        break;
      case 2:
        script.conflicts = 1 + below(30);
        break;
      case 3:
        script.failures_at_commit = chance(20) ? kAlways : 1 + below(3);
        break;
      case 4:
        script.flaky = 0.3;
        break;
      case 5:
        script.fails_in_company = true;
        break;
      default:
        break;
    }
    return script;
  }

  void send_all() {
    const std::vector<std::string> names{"single", "batch", "blocking", "mixed"};
    for (int i = 50 + below(150); i > 0; --i) {
      const int channel = below(6);
      Message message{.channel_name = names[static_cast<std::size_t>(below(4))],
                      .channel_args = std::to_string(channel),
                      .name = chance(50)   ? "x"
                              : chance(90) ? "y"
                                           : "nobody's",
                      .ordered = channel < 3,
                      .retries = below(5),
                      .retry_backoff = below(3) * kSecond,
                      .delay = chance(80) ? 0 : below(20) * kSecond,
                      .script = random_script()};
      if (chance(5)) message.script.snoozes = 1 + below(3);
      if (chance(5)) message.script.discards = true;
      if (chance(2)) message.uncommitted = true;
      if (chance(2)) message.has_payload = false;
      if (chance(2)) message.retries = -1;
      if (chance(10)) message.expires = 1 + below(20) * kSecond;
      sent[table.send(message)] = message;
    }
  }

  void run_to_the_end() {
    session.caller.during = [&] {
      if (rival.transaction.is_open() || !chance(10)) return;
      rival_worker.run_until_empty(1 + below(20), nullptr);
    };
    // The first worker is told to end at some point; another takes its place.
    const std::size_t last_wait = static_cast<std::size_t>(below(100));
    session.caller.hurry_after = below(200);
    session.host.wants_end = [&] { return session.host.waits.size() >= last_wait; };
    Worker(session.ports()).run();
    session.caller.hurry_after = kAlways;
    session.host.wants_end = nullptr;
    Worker(session.ports()).run();
    // What no handler takes has waited for one.
    for (Session* one : {&session, &rival}) one->host.add_handler("mixed", Shape::kJson, "nobody's");
    Worker(session.ports()).run();
  }

  bool is_blocked(const Message& message) const {
    if (!message.ordered || message.channel_name != "blocking") return false;
    const auto& channel = table.ordered.at({message.channel_name, message.channel_args});
    return !channel.empty() && table.rows.at(*channel.begin()).blocks;
  }

  void check_message(const Uuid& id, const Message& message) {
    const int expired = static_cast<int>(std::count(table.expired.begin(), table.expired.end(), id));
    const int ends = table.handled(id) + table.died(id) + expired;
    if (table.find(id) != nullptr) {
      EXPECT_TRUE(is_blocked(message)) << "left behind";
      EXPECT_EQ(ends, table.find(id)->blocks ? 1 : 0);
    } else {
      EXPECT_EQ(ends, 1) << "handled " << table.handled(id) << ", died " << table.died(id) << ", expired " << expired;
    }
    if (expired > 0) {
      EXPECT_TRUE(message.uncommitted);
    }

    const int allowed = std::max(0, message.retries + 1);
    int attempts = 0;
    for (const FailedAttempt& failed : table.failures) {
      if (failed.id != id) continue;
      ++attempts;
      EXPECT_EQ(failed.attempt, attempts);
    }
    EXPECT_LE(attempts + table.handled(id), allowed);
    for (const Dead& letter : table.dead) {
      if (letter.id != id) continue;
      if (letter.reason == "expired") {
        EXPECT_LE(sent_at + message.expires, clock.time);
        EXPECT_EQ(letter.attempts, attempts);
        continue;
      }
      const int discarded = message.has_payload ? attempts + 1 : attempts;
      EXPECT_EQ(letter.attempts, letter.reason == "exhausted" ? allowed : discarded);
    }
    const auto kept = std::count(table.kept.begin(), table.kept.end(), id);
    const bool discarded = message.script.discards && table.died(id) > 0;
    if (table.handled(id) > 0) {
      EXPECT_EQ(kept, message.script.snoozes);
    }
    EXPECT_LE(kept, message.script.snoozes + (discarded ? 1 : 0));
    if (is_predictable(message) && table.find(id) == nullptr) {
      EXPECT_EQ(attempts, std::min(message.script.failures, allowed));
    }
  }

  bool is_predictable(const Message& message) const {
    const Script& script = message.script;
    return !refuses_commits && message.expires == kNever && message.name != "nobody's" && !message.uncommitted &&
           message.has_payload && script.conflicts == 0 && script.failures_at_commit == 0 && script.flaky == 0;
  }

  void check() {
    for (const auto& [id, message] : sent) {
      SCOPED_TRACE("place " + std::to_string(table.places.at(id)) + " of " + message.channel_name);
      check_message(id, message);
    }
    std::map<Table::ChannelId, std::int64_t> last;
    for (const Uuid& id : table.effects) {
      const Message& message = sent.at(id);
      if (!message.ordered) continue;
      std::int64_t& place = last[{message.channel_name, message.channel_args}];
      EXPECT_LT(place, table.places.at(id));
      place = table.places.at(id);
    }
    for (const Session* one : {&session, &rival}) {
      EXPECT_FALSE(one->transaction.is_open());
      for (const auto& record : one->transaction.history) EXPECT_LE(record.released, kMostSavepoints);
    }
    EXPECT_TRUE(table.locks.empty());
  }

  std::mt19937_64 random{GetParam()};
  FakeClock clock{GetParam()};
  Table table{clock};
  Session session{table, clock};
  Session rival{table, clock};
  Worker rival_worker{rival.ports()};
  std::map<Uuid, Message> sent;
  bool refuses_commits = false;
  const Micros sent_at = clock.time;
};

TEST_P(Simulation, EachMessageEndsOnceInItsOrder) {
  send_all();
  run_to_the_end();
  check();
}

TEST_P(Simulation, EachMessageEndsOnceInItsOrderThoughTheServerFails) {
  send_all();
  for (int i = below(4); i > 0; --i) session.queue.claim_errors.emplace_back("53200", "out of memory");
  for (int i = below(4); i > 0; --i) session.queue.settle_errors.emplace_back("53100", "disk full");
  for (int i = below(4); i > 0; --i) session.transaction.refusals.emplace_back("53100", "disk full");
  refuses_commits = !session.transaction.refusals.empty();
  run_to_the_end();
  check();
}

INSTANTIATE_TEST_SUITE_P(Seed, Simulation, testing::Range<std::uint64_t>(1, 61),
                         [](const auto& seed) { return std::to_string(seed.param); });

}  // namespace
}  // namespace mq::fake
