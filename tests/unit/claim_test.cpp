#include "claim.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "fake_server.hpp"

namespace mq {
namespace {

using fake::FakeClock;
using fake::Session;
using fake::Table;

using Places = std::vector<std::int64_t>;

Places places(const Batch& batch) {
  Places result;
  for (const Claimed& message : batch) result.push_back(message.place);
  return result;
}

int count_of(const Batch& batch, std::string_view channel_name) {
  return static_cast<int>(std::count_if(batch.begin(), batch.end(),
                                        [&](const Claimed& message) { return message.channel_name == channel_name; }));
}

class ClaimTest : public testing::Test {
 protected:
  // In a transaction of its own; the messages of the claim before are free again.
  Claim claim(const std::vector<Source>& sources, int limit, bool with_runs = true) {
    session.transaction.rollback();
    session.transaction.begin();
    return claimer.claim(sources, limit, with_runs);
  }
  Claim claim(int limit, bool with_runs = true) { return claim({{"c", 1000}}, limit, with_runs); }

  void remove(const Batch& batch) {
    std::vector<Uuid> ids;
    for (const Claimed& message : batch) ids.push_back(message.id);
    session.transaction.rollback();
    for (const Uuid& id : ids) table.erase(id);
  }

  FakeClock clock;
  Table table{clock};
  Session session{table, clock};
  Claimer claimer{session.queue, clock};
};

// Runs behind ordered heads included; what is left over is for the next.
TEST_F(ClaimTest, TakesChannelNamesOfGreaterPriorityFirst) {
  table.send(20, {.channel_name = "low"});
  table.send(3, {.channel_name = "high"});
  table.send(4, {.channel_name = "ordered", .ordered = true});
  const std::vector<Source> sources{{"low", 1000, -1}, {"ordered", 1000, 5}, {"high", 1000, 5}};
  for (int i = 0; i < 10; ++i) {
    const Claim taken = claim(sources, 9);
    EXPECT_EQ(count_of(taken.messages, "high"), 3);
    EXPECT_EQ(count_of(taken.messages, "ordered"), 4);
    EXPECT_EQ(count_of(taken.messages, "low"), 2);
    EXPECT_EQ(taken.messages.back().channel_name, "low");
    EXPECT_TRUE(taken.more_is_due);
  }
  EXPECT_EQ(count_of(claim(sources, 2).messages, "low"), 0);
}

TEST_F(ClaimTest, TakesTheOldestFirst) {
  table.send({.delay = -1 * kSecond});
  table.send({.delay = -3 * kSecond});
  table.send({.delay = -2 * kSecond});
  table.send({.delay = -2 * kSecond});
  EXPECT_EQ(places(claim(10).messages), (Places{2, 3, 4, 1}));
}

TEST_F(ClaimTest, OrdersWhatWasDrawnAmongTheOldest) {
  table.send(40, {.channel_args = "big"});
  table.send({.channel_args = "late", .delay = -kSecond});
  for (int i = 0; i < 20; ++i) {
    const Places taken = places(claim(8).messages);
    ASSERT_EQ(taken.size(), 8U);
    EXPECT_EQ(taken.front(), 41);
    EXPECT_TRUE(std::is_sorted(taken.begin() + 1, taken.end()));
  }
}

TEST_F(ClaimTest, OfFewMessagesCostsOneScan) {
  table.send(5, {});
  EXPECT_EQ(claim(20).messages.size(), 5U);
  EXPECT_EQ(session.queue.claims, 1);
  EXPECT_EQ(session.queue.scans, 1);
  EXPECT_EQ(session.queue.draws, 0);
}

TEST_F(ClaimTest, OfNothingIsNothing) {
  table.send({});
  EXPECT_TRUE(claim(std::vector<Source>(), 10).messages.empty());
  EXPECT_TRUE(claim(0).messages.empty());
  EXPECT_TRUE(claim(-1).messages.empty());
  EXPECT_FALSE(claim(0).more_is_due);
  EXPECT_TRUE(claim({{"another", 10}}, 10).messages.empty());
}

TEST_F(ClaimTest, LeavesWhatIsNotDueAndWhatOthersHaveLocked) {
  table.send({.delay = kSecond});
  table.send(4, {});
  Session rival(table, clock);
  rival.transaction.begin();
  const Claim theirs = Claimer(rival.queue, clock).claim({{"c", 1000}}, 2, true);
  EXPECT_EQ(places(theirs.messages), (Places{2, 3}));
  EXPECT_EQ(places(claim(10).messages), (Places{4, 5}));
}

// --- Fairness ---

TEST_F(ClaimTest, ChannelOfOneIsInEveryClaimBesideAChannelOfAThousand) {
  table.send(1000, {.channel_args = "big"});
  table.send({.channel_args = "small"});
  for (int i = 0; i < 300; ++i) {
    const Places taken = places(claim(10, i % 2 == 0).messages);
    EXPECT_EQ(taken.size(), 10U);
    ASSERT_EQ(taken.back(), 1001) << "claim " << i;
  }
}

TEST_F(ClaimTest, SmallChannelsAreServedLongBeforeAFloodIsOver) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    FakeClock own_clock(seed);
    Table own(own_clock);
    Session own_session(own, own_clock);
    Claimer own_claimer(own_session.queue, own_clock);
    own.send(1000, {.channel_args = "flood"});
    for (int tenant = 0; tenant < 20; ++tenant) own.send({.channel_args = std::to_string(tenant)});
    int claims = 0;
    for (; own.rows.rbegin()->second.channel_args != "flood" && claims < 100; ++claims) {
      own_session.transaction.begin();
      const Claim taken = own_claimer.claim({{"c", 1000}}, 20, true);
      ASSERT_EQ(taken.messages.size(), 20U);
      for (const Claimed& message : taken.messages) own.erase(message.id);
      own_session.transaction.rollback();
    }
    EXPECT_LE(claims, 12);
  }
}

TEST_F(ClaimTest, ClaimsOfOneTakeTheOldestAndADrawnOneByTurns) {
  for (int tenant = 0; tenant < 50; ++tenant) table.send({.channel_args = std::to_string(tenant)});
  std::map<std::int64_t, int> taken;
  for (int i = 0; i < 400; ++i) {
    const Claim one = claim(1);
    ASSERT_EQ(one.messages.size(), 1U);
    ++taken[one.messages[0].place];
  }
  EXPECT_GE(taken[1], 150);
  EXPECT_LE(taken[1], 250);
  EXPECT_GE(taken.size(), 25U);
}

TEST_F(ClaimTest, ThatDrawsOnlyTheOldestIsFilledFromTheRest) {
  table.send(100, {});
  for (int limit = 1; limit <= 20; ++limit) EXPECT_EQ(claim(limit).messages.size(), static_cast<std::size_t>(limit));
}

TEST_F(ClaimTest, DrawThatFoundNothingNewIsSparedForAFewClaims) {
  table.send(100, {});
  for (int i = 0; i < 20; ++i) EXPECT_EQ(claim(10).messages.size(), 10U);
  EXPECT_GE(session.queue.draws, 2);
  EXPECT_LE(session.queue.draws, 5);
}

TEST_F(ClaimTest, ChannelThatComesLateIsFoundWithinAFewClaims) {
  table.send(1000, {.channel_args = "big"});
  for (int i = 0; i < 7; ++i) (void)claim(10);
  table.send({.channel_args = "small"});
  int claims = 1;
  while (places(claim(10).messages).back() != 1001 && claims < 100) ++claims;
  EXPECT_LE(claims, 5);
}

// --- Channel names ---

TEST_F(ClaimTest, NamesShareTheBatchEvenly) {
  for (const char* name : {"a", "b", "c"}) table.send(100, {.channel_name = name});
  const Claim taken = claim({{"a", 1000}, {"b", 1000}, {"c", 1000}}, 30);
  EXPECT_EQ(taken.messages.size(), 30U);
  for (const char* name : {"a", "b", "c"}) EXPECT_EQ(count_of(taken.messages, name), 10);
}

TEST_F(ClaimTest, WhatANameDoesNotUseIsLeftToTheOthers) {
  table.send(2, {.channel_name = "a"});
  for (const char* name : {"b", "c"}) table.send(100, {.channel_name = name});
  for (const double start : {0.0, 0.4, 0.7}) {
    clock.dices = {start};  // the name to begin with
    const Claim taken = claim({{"a", 1000}, {"b", 1000}, {"c", 1000}}, 30);
    EXPECT_EQ(taken.messages.size(), 30U);
    EXPECT_EQ(count_of(taken.messages, "a"), 2);
    EXPECT_GE(count_of(taken.messages, "b"), 10);
    EXPECT_GE(count_of(taken.messages, "c"), 10);
  }
}

TEST_F(ClaimTest, NameGivesNoMoreThanItMay) {
  table.send(100, {.channel_name = "a"});
  table.send(100, {.channel_name = "o", .ordered = true});
  const Claim taken = claim({{"a", 3}, {"o", 4}}, 50);
  EXPECT_EQ(count_of(taken.messages, "a"), 3);
  EXPECT_EQ(count_of(taken.messages, "o"), 4);
  EXPECT_TRUE(taken.more_is_due);
}

TEST_F(ClaimTest, EachNameHasItsTurnWhenThereAreMoreThanTheBatchTakes) {
  std::vector<Source> sources;
  for (const char* name : {"a", "b", "c", "d", "e"}) {
    table.send(10, {.channel_name = name});
    sources.push_back({name, 1000});
  }
  std::map<std::string, int> turns;
  for (int i = 0; i < 200; ++i) {
    const Claim taken = claim(sources, 2);
    ASSERT_EQ(taken.messages.size(), 2U);
    EXPECT_TRUE(taken.more_is_due);
    for (const Claimed& message : taken.messages) ++turns[std::string(message.channel_name)];
  }
  EXPECT_EQ(turns.size(), 5U);
  for (const auto& [name, count] : turns) EXPECT_GE(count, 40) << name;
}

// --- Runs ---

TEST_F(ClaimTest, RunGoesRightBehindItsHead) {
  for (int i = 0; i < 3; ++i) {
    table.send({.channel_args = "x", .ordered = true});
    table.send({.channel_args = "y", .ordered = true});
    table.send({});
  }
  EXPECT_EQ(places(claim(20).messages), (Places{1, 4, 7, 2, 5, 8, 3, 6, 9}));
}

TEST_F(ClaimTest, WithoutRunsIsOfHeadsAlone) {
  table.send(3, {.ordered = true});
  EXPECT_EQ(places(claim(20, false).messages), (Places{1}));
}

TEST_F(ClaimTest, RunsShareTheRoom) {
  table.send(50, {.channel_args = "x", .ordered = true});
  table.send(50, {.channel_args = "y", .ordered = true});
  EXPECT_EQ(places(claim(10).messages), (Places{1, 2, 3, 4, 5, 51, 52, 53, 54, 55}));
}

TEST_F(ClaimTest, RunsTakeNoMoreThanTheRoomThatManyHeadsLeave) {
  for (int i = 0; i < 3; ++i) table.send(5, {.channel_args = std::to_string(i), .ordered = true});
  EXPECT_EQ(places(claim(4).messages), (Places{1, 2, 6, 11}));
  EXPECT_EQ(places(claim(3).messages), (Places{1, 6, 11}));
}

TEST_F(ClaimTest, RunEndsBeforeAMessageThatCannotBeDelivered) {
  table.send(2, {.ordered = true});
  table.send({.ordered = true, .has_payload = false});
  table.send(2, {.ordered = true});
  const Claim taken = claim(20);
  EXPECT_EQ(places(taken.messages), (Places{1, 2}));
  EXPECT_TRUE(taken.leftovers.empty());
}

TEST_F(ClaimTest, RunsOfChannelsThatShareAKeyStayApart) {
  table.hash_collides = true;
  table.send({.channel_args = "x", .ordered = true});
  table.send(3, {.channel_args = "y", .ordered = true});
  table.send(2, {.channel_args = "z", .ordered = true});
  EXPECT_EQ(places(claim(20).messages), (Places{1, 2, 3, 4, 5, 6}));
  table.send({.channel_args = "x", .ordered = true});
  EXPECT_EQ(places(claim(20).messages), (Places{1, 7, 2, 3, 4, 5, 6}));
}

// --- Leftovers ---

TEST_F(ClaimTest, WhatCannotBeDeliveredIsLeftOver) {
  table.send({.delay = -kSecond, .uncommitted = true});
  table.send({.has_payload = false});
  table.send({.retries = -1});
  table.send({});
  const Claim taken = claim(10);
  EXPECT_EQ(places(taken.messages), (Places{4}));
  EXPECT_EQ(places(taken.leftovers), (Places{1, 2, 3}));
}

TEST_F(ClaimTest, NothingIsTakenBehindAHeadThatCannotBeDelivered) {
  table.send({.ordered = true, .has_payload = false});
  table.send(3, {.ordered = true});
  const Claim taken = claim(10);
  EXPECT_TRUE(taken.messages.empty());
  EXPECT_EQ(places(taken.leftovers), (Places{1}));
}

TEST(Dispose, RemovesTheExpiredAndBuriesTheOthersUncharged) {
  Claimed expired, without_payload, exhausted;
  expired.uncommitted = true;
  expired.has_payload = false;
  expired.attempts_left = 5;
  without_payload.has_payload = false;
  without_payload.attempts_left = 5;
  exhausted.attempts_left = 0;
  const Batch leftovers{expired, without_payload, exhausted};
  Settlement settlement;
  dispose(leftovers, 0, settlement);

  ASSERT_EQ(settlement.removed.size(), 1U);
  EXPECT_EQ(settlement.removed[0], &leftovers[0]);
  ASSERT_EQ(settlement.burials.size(), 2U);
  EXPECT_EQ(settlement.burials[0].message, &leftovers[1]);
  EXPECT_EQ(settlement.burials[0].reason, "discarded");
  EXPECT_EQ(settlement.burials[0].error->message, "payload of message is missing");
  EXPECT_EQ(settlement.burials[1].message, &leftovers[2]);
  EXPECT_EQ(settlement.burials[1].reason, "exhausted");
  EXPECT_FALSE(settlement.burials[1].error);
  for (const Burial& burial : settlement.burials) {
    EXPECT_FALSE(burial.charged);
    EXPECT_FALSE(burial.block);
  }
  EXPECT_TRUE(settlement.retries.empty());
  EXPECT_TRUE(settlement.failures.empty());
}

// --- Whether more is due ---

TEST_F(ClaimTest, NothingMoreIsDueWhenTheQueueEndedTheClaim) {
  table.send(5, {});
  table.send(5, {.channel_args = "o", .ordered = true});
  table.send({.delay = kSecond});
  const Claim taken = claim(20);
  EXPECT_EQ(taken.messages.size(), 10U);
  EXPECT_FALSE(taken.more_is_due);
}

TEST_F(ClaimTest, MoreIsDueWhenTheLimitEndedTheClaim) {
  table.send(20, {});
  for (int limit = 1; limit <= 10; ++limit) ASSERT_TRUE(claim(limit).more_is_due) << limit;
}

TEST_F(ClaimTest, MoreIsDueWhenTheLimitEndedARun) {
  table.send(20, {.ordered = true});
  for (int limit = 1; limit <= 10; ++limit) ASSERT_TRUE(claim(limit).more_is_due) << limit;
}

TEST_F(ClaimTest, MoreIsDueWhenTheLimitEndedRunsThatDoNotDivideTheRoom) {
  table.send(20, {.channel_args = "x", .ordered = true});
  table.send(20, {.channel_args = "y", .ordered = true});
  for (int limit = 3; limit <= 10; ++limit) ASSERT_TRUE(claim(limit).more_is_due) << limit;
}

TEST_F(ClaimTest, MoreIsDueWhenADrawnMessageComesUpAgain) {
  table.send(8, {.channel_args = "big"});
  table.send({.channel_args = "small"});
  table.send(10, {.channel_args = "big"});
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(claim(10).more_is_due);
}

TEST(DisposeTest, MessageWhoseLeaseholderIsGoneIsGivenBackUnlessItHasExpired) {
  Batch leftovers(2);
  for (Claimed& message : leftovers) {
    message.orphan = true;
    message.attempts_left = 1;
    message.lease = 7;
  }
  leftovers[1].expires_at = 3;
  Settlement settlement;
  dispose(leftovers, 5, settlement);
  ASSERT_EQ(settlement.snoozes.size(), 1U);
  EXPECT_EQ(settlement.snoozes[0].message, &leftovers[0]);
  EXPECT_EQ(settlement.snoozes[0].attempt_at, 5);
  ASSERT_EQ(settlement.burials.size(), 1U);
  EXPECT_EQ(settlement.burials[0].message, &leftovers[1]);
  EXPECT_EQ(settlement.burials[0].reason, "expired");
}

}  // namespace
}  // namespace mq
