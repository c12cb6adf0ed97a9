// Claims from queues at random: what holds for each of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "claim.hpp"
#include "fake_server.hpp"

namespace mq {
namespace {

using fake::FakeClock;
using fake::Session;
using fake::Table;

int count_of(const Batch& batch, std::string_view channel_name) {
  return static_cast<int>(std::count_if(batch.begin(), batch.end(),
                                        [&](const Claimed& message) { return message.channel_name == channel_name; }));
}

void check_claim(const Claim& taken, const std::vector<Source>& sources, int limit, const Table& table) {
  std::set<Uuid> seen;
  for (const Batch* batch : {&taken.messages, &taken.leftovers})
    for (const Claimed& message : *batch) ASSERT_TRUE(seen.insert(message.id).second) << message.place;
  ASSERT_LE(taken.messages.size(), static_cast<std::size_t>(limit));
  for (const Source& source : sources) ASSERT_LE(count_of(taken.messages, source.channel_name), source.most);

  // Names together; of an ordered channel the head and what follows it, without a gap.
  std::set<std::string_view> names;
  std::string_view name;
  std::map<Table::ChannelId, std::set<std::int64_t>::const_iterator> next;
  for (const Claimed& message : taken.messages) {
    if (names.empty() || message.channel_name != name) {
      name = message.channel_name;
      ASSERT_TRUE(names.insert(name).second) << name;
    }
    ASSERT_TRUE(!message.uncommitted && message.has_payload && message.attempts_left > 0);
    if (!message.ordered) continue;
    const Table::ChannelId channel{std::string(message.channel_name), std::string(message.channel_args)};
    const auto place = next.emplace(channel, table.ordered.at(channel).begin()).first;
    ASSERT_EQ(*place->second++, message.place);
  }
}

TEST(ClaimAtRandom, NeverTakesAMessageTwiceNorMoreThanItsLimit) {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto below = [&](int end) { return static_cast<int>(random() % static_cast<std::uint64_t>(end)); };
    FakeClock clock(seed);
    Table table(clock);
    Session session(table, clock);
    Claimer claimer(session.queue, clock);
    table.hash_collides = below(4) == 0;
    const std::vector<Source> sources{{"a", 1 + below(20)}, {"b", 1 + below(20)}, {"c", 1 + below(20)}};
    for (int i = below(80); i >= 0; --i) {
      const int channel = below(8);
      table.send({.channel_name = std::string(sources[static_cast<std::size_t>(below(3))].channel_name),
                  .channel_args = std::to_string(channel),
                  .ordered = channel < 3,
                  .retries = below(20) - 1,
                  .delay = (below(10) - 8) * kSecond,
                  .uncommitted = below(20) == 0,
                  .has_payload = below(20) != 0});
    }
    for (int round = 0; round < 20; ++round) {
      const int limit = 1 + below(25);
      session.transaction.begin();
      const Claim taken = claimer.claim(sources, limit, below(2) == 0);
      ASSERT_NO_FATAL_FAILURE(check_claim(taken, sources, limit, table));
      const std::size_t found = taken.messages.size() + taken.leftovers.size();
      const Micros now = clock.now();
      const bool any_due = std::any_of(table.rows.begin(), table.rows.end(), [&](const auto& row) {
        return row.second.attempt_at <= now && table.is_head(row.second);
      });
      ASSERT_EQ(found > 0, any_due);
      std::vector<Uuid> gone;
      for (const Batch* batch : {&taken.messages, &taken.leftovers})
        for (const Claimed& message : *batch) gone.push_back(message.id);
      session.transaction.rollback();
      for (const Uuid& id : gone) table.erase(id);
      clock.time += kSecond / 2;
    }
  }
}

}  // namespace
}  // namespace mq
