#include "shmem/low_water_marks.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <vector>

namespace mq {
namespace {

constexpr std::uint64_t kKey = 7;
constexpr Micros kInterval = 5 * kSecond;
constexpr Micros kStart = 1000 * kSecond;

constexpr Position at(Micros micros, std::int64_t seq = 0) {
  return {micros, seq};
}

class LowWaterMarksTest : public testing::Test {
 protected:
  // A search that found this, with nothing in between.
  void raise(Position first, std::uint64_t key = kKey) {
    set.taken(key, 1);
    set.raise(key, set.look(key).ticket, first, kStart);
  }
  std::optional<Position> mark(std::uint64_t key = kKey) const { return set.look(key).mark; }

  LowWaterMarks set{};
};

TEST_F(LowWaterMarksTest, NameWithoutAMarkIsScannedFromTheBeginning) {
  EXPECT_EQ(mark(), std::nullopt);
  EXPECT_FALSE(set.look(kKey).raise);
}

TEST_F(LowWaterMarksTest, IsWorthRaisingOnceEnoughWasTaken) {
  set.taken(kKey, 31);
  EXPECT_FALSE(set.look(kKey).raise);
  set.taken(kKey, 1);
  EXPECT_TRUE(set.look(kKey).raise);
  raise(at(10));
  EXPECT_FALSE(set.look(kKey).raise);
}

TEST_F(LowWaterMarksTest, RisesAndNeverFallsByASearch) {
  raise(at(10, 5));
  EXPECT_EQ(mark(), at(10, 5));
  raise(at(10, 6));
  EXPECT_EQ(mark(), at(10, 6));
  raise(at(9));
  EXPECT_EQ(mark(), at(10, 6));
}

TEST_F(LowWaterMarksTest, IsLoweredByAMessageBelowAndByNoOther) {
  raise(at(10));
  set.lower(kKey, at(11));
  EXPECT_EQ(mark(), at(10));
  set.lower(kKey, at(10, -1));
  EXPECT_EQ(mark(), at(10, -1));
}

TEST_F(LowWaterMarksTest, SearchThatAMessageCameUnderRaisesNothing) {
  raise(at(10));
  const LowWaterMarks::Ticket ticket = set.look(kKey).ticket;
  set.lower(kKey, at(15));
  set.raise(kKey, ticket, at(20), kStart);
  EXPECT_EQ(mark(), at(10));
}

TEST_F(LowWaterMarksTest, SearchIsNotDisturbedByMessagesBehindIt) {
  raise(at(10));
  const LowWaterMarks::Ticket ticket = set.look(kKey).ticket;
  for (int i = 0; i < 300; ++i) set.lower(kKey, at(21 + i));
  set.raise(kKey, ticket, at(20), kStart);
  EXPECT_EQ(mark(), at(20));
}

TEST_F(LowWaterMarksTest, MessageBelowIsRememberedThroughManyOthers) {
  raise(at(10));
  const LowWaterMarks::Ticket ticket = set.look(kKey).ticket;
  set.lower(kKey, at(15));
  for (int i = 0; i < 5000; ++i) {
    set.lower(kKey, at(100));
    set.raise(kKey, ticket, at(20), kStart);
    ASSERT_EQ(mark(), at(10)) << i;
  }
  set.raise(kKey, set.look(kKey).ticket, at(20), kStart);
  EXPECT_EQ(mark(), at(20)) << "a later search is not disturbed";
}

TEST_F(LowWaterMarksTest, SearchFromTheBeginningIsDisturbedThoughThereWasNoMark) {
  const LowWaterMarks::Ticket ticket = set.look(kKey).ticket;
  set.lower(kKey, at(5));
  set.taken(kKey, 32);
  set.raise(kKey, ticket, at(10), kStart);
  EXPECT_EQ(mark(), std::nullopt);
}

TEST_F(LowWaterMarksTest, NamesOfASetHaveMarksOfTheirOwn) {
  raise(at(10), 1);
  raise(at(20), 2);
  set.lower(2, at(5));
  EXPECT_EQ(mark(1), at(10));
  EXPECT_EQ(mark(2), at(5));
}

TEST_F(LowWaterMarksTest, NameThatWasUsedLongestAgoGivesWay) {
  for (std::uint64_t key = 1; key <= 8; ++key) raise(at(10), key);
  raise(at(10), 1);
  raise(at(10), 9);
  EXPECT_EQ(mark(2), std::nullopt);
  EXPECT_EQ(mark(1), at(10));
  EXPECT_EQ(mark(9), at(10));
}

TEST_F(LowWaterMarksTest, AreCheckedOnceAnInterval) {
  EXPECT_FALSE(set.begin_check(kKey, kStart, 0)) << "there is none";
  raise(at(10));
  EXPECT_FALSE(set.begin_check(kKey, kStart + kInterval - 1, kInterval)) << "it comes of a look from the beginning";
  EXPECT_TRUE(set.begin_check(kKey, kStart + kInterval, kInterval));
  EXPECT_FALSE(set.begin_check(kKey, kStart + kInterval, kInterval)) << "somebody does";
  EXPECT_TRUE(set.begin_check(kKey, kStart, kInterval)) << "the clock was set back";
}

TEST_F(LowWaterMarksTest, CheckLowersAMarkThatHidesSomething) {
  raise(at(10));
  EXPECT_FALSE(set.end_check(kKey, 0, at(11)));
  EXPECT_EQ(mark(), at(10));
  EXPECT_TRUE(set.end_check(kKey, 0, at(9)));
  EXPECT_EQ(mark(), at(9));
}

TEST_F(LowWaterMarksTest, CostlyChecksTakeASmallShareOfTheTime) {
  raise(at(10));
  set.end_check(kKey, kSecond, at(11));
  EXPECT_FALSE(set.begin_check(kKey, kStart + 49 * kSecond, kInterval));
  EXPECT_TRUE(set.begin_check(kKey, kStart + 50 * kSecond, kInterval));
  set.end_check(kKey, kSecond / 1000, at(11));
  EXPECT_TRUE(set.begin_check(kKey, kStart + 50 * kSecond, 0)) << "a cheap one may come at any time";
}

TEST_F(LowWaterMarksTest, StepSaysWhetherTheCheckGoesOn) {
  raise(at(10));
  EXPECT_TRUE(set.begin_check(kKey, kStart + kInterval, kInterval));
  EXPECT_TRUE(set.end_step(kKey, 0, at(9)));
  EXPECT_FALSE(set.end_step(kKey, 0, at(10))) << "it has come to the mark";
  EXPECT_FALSE(set.end_step(kKey + 1, 0, at(9))) << "the name has given way to others";
}

TEST_F(LowWaterMarksTest, StepsOfACheckGoOnWhereTheLastOneEnded) {
  raise(at(10));
  EXPECT_EQ(set.begin_check(kKey, kStart + kInterval, kInterval), LowWaterMarks::kBeginning);
  set.end_step(kKey, kSecond, at(4));
  EXPECT_EQ(set.begin_check(kKey, kStart + kInterval, kInterval), at(4)) << "the same check: no interval";
  set.end_step(kKey, 0, at(10));
  EXPECT_FALSE(set.begin_check(kKey, kStart + 2 * kInterval - 1, kInterval)) << "it has come to the mark";
  EXPECT_EQ(set.begin_check(kKey, kStart + 2 * kInterval, kInterval), LowWaterMarks::kBeginning);
  set.end_step(kKey, 0, at(4));
  EXPECT_TRUE(set.end_check(kKey, 0, at(6)));
  EXPECT_EQ(mark(), at(6));
  EXPECT_EQ(set.begin_check(kKey, kStart + 3 * kInterval, kInterval), LowWaterMarks::kBeginning);
}

// Senders, searches and removals step by step in random order. Whenever nobody still owes a lowering, no mark is
// above a message.
TEST(LowWaterMarksSet, HidesNothingWhateverTheOrder) {
  struct Search {
    std::uint64_t key;
    LowWaterMarks::Ticket ticket;
    Position from;
    std::optional<Position> first;
  };
  struct Owed {
    std::uint64_t key;
    Position position;
  };
  int raised = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    std::mt19937_64 random(seed);
    const std::uint64_t keys = 1 + seed % 10;  // at times more than have room
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
    LowWaterMarks set{};
    std::map<std::uint64_t, std::set<Position>> left;
    std::vector<Owed> owed;
    std::vector<Search> searches;
    std::int64_t seq = 0;
    for (int step = 0; step < 2000; ++step) {
      const std::uint64_t key = 1 + random() % keys;
      switch (below(6)) {
        case 0:  // committed: others see it, and the callback is to come
          owed.push_back({key, at(static_cast<Micros>(step) - static_cast<Micros>(below(30)), ++seq)});
          left[key].insert(owed.back().position);
          break;
        case 1:
          if (owed.empty()) break;
          std::swap(owed[below(owed.size())], owed.back());
          set.lower(owed.back().key, owed.back().position);
          owed.pop_back();
          break;
        case 2:
          if (searches.size() == 4) break;
          set.taken(key, 32);
          searches.push_back({key, set.look(key).ticket, set.look(key).mark.value_or(at(-1000)), std::nullopt});
          break;
        case 3: {
          if (searches.empty()) break;
          Search& search = searches[below(searches.size())];
          if (search.first) break;
          const auto found = left[search.key].lower_bound(search.from);
          search.first = found == left[search.key].end() ? at(step) : std::min(*found, at(step));
          break;
        }
        case 4: {
          if (searches.empty()) break;
          std::swap(searches[below(searches.size())], searches.back());
          const Search search = searches.back();
          if (!search.first) break;
          searches.pop_back();
          const auto before = set.look(search.key).mark;
          set.raise(search.key, search.ticket, *search.first, kStart);
          if (set.look(search.key).mark != before) ++raised;
          break;
        }
        default:
          if (!left[key].empty()) left[key].erase(left[key].begin());
      }
      for (const auto& [name, positions] : left) {
        const auto mark = set.look(name).mark;
        if (!mark) continue;
        for (const Position& position : positions) {
          if (position >= *mark) break;
          const bool is_owed = std::any_of(owed.begin(), owed.end(), [&, name = name](const Owed& o) {
            return o.key == name && o.position == position;
          });
          ASSERT_TRUE(is_owed) << "seed " << seed << ", step " << step;
        }
      }
    }
  }
  EXPECT_GT(raised, 1000);
}

}  // namespace
}  // namespace mq
