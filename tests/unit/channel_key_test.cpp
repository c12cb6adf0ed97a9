#include "shmem/channel_key.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <string>

namespace mq {
namespace {

// These stand in tables and indexes of users: a change here loses their messages. `xxhsum -H3`
// gives the same for the four bytes of the length, the name and the arguments.
TEST(ChannelKey, IsFrozen) {
  EXPECT_EQ(channel_key("", ""), 5238470482016868669);
  EXPECT_EQ(channel_key("a", ""), -1240086187657967757);
  EXPECT_EQ(channel_key("", "a"), -945619575968843511);
  EXPECT_EQ(channel_key("orders", "tenant=42"), 5589012770411887606);
  EXPECT_EQ(channel_key("Bestellungen f\xc3\xbcr K\xc3\xb6ln",
                        "Stra\xc3\x9f"
                        "e 1"),
            -5349871927779375015);
}

// XXH3 takes another way for each range of lengths.
TEST(ChannelKey, IsFrozenForLongTexts) {
  EXPECT_EQ(channel_key(std::string(60, 'n'), std::string(60, 'a')), 8985058642871074368);
  EXPECT_EQ(channel_key(std::string(100, 'n'), std::string(100, 'a')), -8141777226696626460);
  EXPECT_EQ(channel_key(std::string(1024, 'n'), std::string(2048, 'a')), -5848304187368866143);
}

TEST(ChannelKey, TellsWhereTheNameEnds) {
  EXPECT_EQ(channel_key("a", "bc"), -2443112935496209536);
  EXPECT_EQ(channel_key("ab", "c"), 6998654949397998249);
}

TEST(ChannelKey, CountsEveryByte) {
  EXPECT_EQ(channel_key(std::string("a\0b", 3), std::string("\0", 1)), 5903812914013444067);
  EXPECT_NE(channel_key(std::string("a\0b", 3), std::string("\0", 1)), channel_key("a", ""));
}

TEST(ChannelKey, SpreadsTenantsOfOneName) {
  std::set<std::int64_t> keys;
  for (int tenant = 0; tenant < 10'000; ++tenant) keys.insert(channel_key("orders", std::to_string(tenant)));
  EXPECT_EQ(keys.size(), 10'000U);
  EXPECT_LT(*keys.begin(), std::numeric_limits<std::int64_t>::min() / 100 * 99);
  EXPECT_GT(*keys.rbegin(), std::numeric_limits<std::int64_t>::max() / 100 * 99);
}

}  // namespace
}  // namespace mq
