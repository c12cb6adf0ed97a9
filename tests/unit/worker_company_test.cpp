// What shares a transaction with what: slow calls, retries, conflicts, and what cannot be settled.
#include <gtest/gtest.h>

#include "worker_fixture.hpp"

namespace mq::fake {
namespace {

constexpr Micros kPatience = 100 * kMillisecond;

class CompanyTest : public WorkerTest {
 protected:
  CompanyTest() { caller.patience = kPatience; }

  // Makes the worker acquainted with the channels.
  void warm(std::initializer_list<const char*> names) {
    for (int i = 0; i < 3; ++i)
      for (const char* name : names) table.send({.channel_name = name});
    worker.run();
    ASSERT_TRUE(table.rows.empty());
    caller.calls.clear();
    host.told_handled = 0;
  }
};

TEST_F(CompanyTest, ChannelThatIsNotKnownHasATransactionOfItsOwn) {
  add_handler("slow");
  add_handler("fast");
  const Uuid slow = table.send({.channel_name = "slow", .script = {.cost = 10 * kSecond}});
  const std::vector<Uuid> fast = table.send(20, {.channel_name = "fast"});
  std::size_t locked = 0;
  caller.during = [&] {
    if (caller.calls.back().front() == slow) locked = std::max(locked, table.locks.size());
  };
  worker.run();
  EXPECT_EQ(locked, 1U);
  EXPECT_EQ(caller.calls_of(slow), 1);
  expect_handled(fast);
}

TEST_F(CompanyTest, CallThatLastsIsStoppedAndRunsAgainAlone) {
  for (const Shape shape : {Shape::kJson, Shape::kBatch}) {
    SCOPED_TRACE(shape == Shape::kBatch);
    const std::string name = shape == Shape::kJson ? "json" : "batch";
    add_handler(name, shape);
    add_handler("fast");
    warm({name.c_str(), "fast"});
    const Micros began = clock.time;
    const std::vector<Uuid> before = table.send(10, {.channel_name = "fast"});
    const Uuid slow = table.send({.channel_name = name, .script = {.cost = 10 * kSecond}});
    const std::vector<Uuid> behind = table.send(10, {.channel_name = "fast"});
    std::size_t locked = 0;
    Micros at = 0;
    caller.during = [&] {
      if (caller.calls.back().front() != slow) return;
      locked = table.locks.size();
      at = clock.time;
    };
    worker.run();
    EXPECT_EQ(caller.calls_of(slow), 2) << "once in company, once without";
    EXPECT_EQ(locked, 1U) << "of the second call";
    EXPECT_LE(at - began, 10 * kPatience);
    expect_handled({slow});
    expect_handled(before);
    expect_handled(behind);
    caller.during = nullptr;
  }
}

TEST_F(CompanyTest, OrderIsKeptAroundACallThatIsStopped) {
  add_handler("c");
  add_handler("fast");
  warm({"c", "fast"});
  std::vector<Uuid> sent = table.send(5, {.ordered = true});
  sent.push_back(table.send({.ordered = true, .script = {.cost = 10 * kSecond}}));
  for (const Uuid& id : table.send(5, {.ordered = true})) sent.push_back(id);
  table.send(5, {.channel_name = "fast"});
  worker.run();
  expect_handled(sent);
}

TEST_F(CompanyTest, SlowCallsOfTwoBatchHandlersOfAChannelComeToAnEnd) {
  add_handler("c", Shape::kBatch, "x");
  add_handler("c", Shape::kBatch, "y");
  for (int i = 0; i < 5; ++i)
    for (const char* name : {"x", "y"}) table.send({.name = name, .script = {.cost = 150 * kMillisecond}});
  worker.run();
  EXPECT_TRUE(table.rows.empty());
  EXPECT_TRUE(table.failures.empty());
}

TEST_F(CompanyTest, SlowChannelAndMixedOnesTakeTurns) {
  add_handler("slow");
  add_handler("fast");
  warm({"fast"});
  table.send(50, {.channel_name = "slow", .script = {.cost = kSecond}});
  const std::vector<Uuid> fast = table.send(5, {.channel_name = "fast"});
  const Micros began = clock.time;
  Micros at = 0;
  host.wants_end = [&] {
    if (table.handled(fast.back()) > 0 && at == 0) at = clock.time;
    return table.rows.empty();
  };
  worker.run();
  EXPECT_LE(at - began, 3 * kSecond);
}

TEST_F(CompanyTest, PriorityHoldsBetweenSlowAndQuickChannels) {
  add_handler("slow").priority = 1;
  add_handler("fast");
  warm({"fast"});
  const std::vector<Uuid> slow = table.send(10, {.channel_name = "slow", .script = {.cost = kSecond}});
  table.send(10, {.channel_name = "fast"});
  bool early = false;
  caller.during = [&] {
    if (table.handled(slow.back()) == 0 && table.find(caller.calls.back().front())->channel_name == "fast")
      early = true;
  };
  worker.run();
  EXPECT_FALSE(early);
}

TEST_F(CompanyTest, RetryAfterAnErrorThatCompanyMayCauseIsAlone) {
  add_handler("c");
  warm({"c"});
  const Uuid failing = table.send({.retry_backoff = kSecond, .script = {.failures = 1, .sqlstate = "23505"}});
  table.send(50, {});
  table.send(50, {.delay = kSecond});
  std::size_t locked = 0;
  caller.during = [&] {
    if (caller.calls.back().front() == failing) locked = table.locks.size();
  };
  worker.run();
  EXPECT_EQ(caller.calls_of(failing), 2);
  EXPECT_EQ(locked, 1U);
}

TEST_F(CompanyTest, FirstRetryAfterAnotherErrorHasCompanyAndLaterOnesHaveNot) {
  add_handler("c");
  warm({"c"});
  const Uuid failing = table.send({.retries = 3, .script = {.failures = 3}});
  for (int i = 0; i < 40; ++i) table.send({.delay = i * kSecond / 4});
  std::vector<std::size_t> locked;
  caller.during = [&] {
    if (caller.calls.back().front() == failing) locked.push_back(table.locks.size());
  };
  table.send(10, {});
  worker.run();
  ASSERT_EQ(locked.size(), 4U);
  EXPECT_GT(locked[0], 1U);
  EXPECT_EQ(locked[2], 1U);
  EXPECT_EQ(locked[3], 1U);
  expect_handled({});
  EXPECT_EQ(table.handled(failing), 1);
}

TEST_F(CompanyTest, ConflictIsTold) {
  add_handler("c");
  table.send({.script = {.conflicts = 1}});
  worker.run();
  EXPECT_EQ(host.conflicts, std::vector<std::string>{"c"});
}

TEST_F(CompanyTest, ChannelWithLimitsIsClaimedFromAloneAndInSmallBatches) {
  add_handler("c");
  add_handler("d");
  warm({"c", "d"});
  host.limited["c"] = {1, 7};
  table.send(50, {});
  table.send(50, {.channel_name = "d"});
  bool mixed = false;
  caller.during = [&] {
    std::map<std::string, int> held;
    for (const auto& [id, transaction_] : table.locks) ++held[table.find(id)->channel_name];
    mixed = mixed || held.size() > 1 || held["c"] > 7;
  };
  worker.run();
  EXPECT_FALSE(mixed);
  EXPECT_TRUE(table.rows.empty());
  EXPECT_FALSE(session.queue.taken.empty());
}

TEST_F(CompanyTest, PlaceOfAChannelWithNothingDueIsNotTaken) {
  add_handler("c").max_workers = 1;
  add_handler("d");
  warm({"c", "d"});
  session.queue.taken.clear();
  table.send(5, {.channel_name = "d"});
  worker.run();
  EXPECT_TRUE(session.queue.taken.empty());
}

TEST_F(CompanyTest, PlaceOfAChannelOfWhichNothingWasClaimedIsGivenBack) {
  add_handler("c").max_workers = 1;
  warm({"c"});
  Session other(table, clock);
  const Uuid id = table.send({});
  other.transaction.begin();
  Batch held;
  other.queue.again(std::span(&id, 1), clock.now(), held);
  host.wants_end = [&] {
    other.transaction.rollback();
    return table.rows.empty();
  };
  worker.run();
  EXPECT_EQ(session.queue.released, std::vector<std::string>{"c"});
  expect_handled({id});
}

TEST_F(CompanyTest, MessageThatCannotBeSettledIsPutOffAndTheOthersAreHandled) {
  add_handler("c");
  warm({"c"});
  const std::vector<Uuid> before = table.send(20, {});
  const Uuid bad = table.send({});
  const std::vector<Uuid> behind = table.send(20, {});
  session.queue.unsettleable = {bad};
  host.wants_end = [&] { return host.delays[bad] >= 3; };
  worker.run();
  expect_handled(before);
  expect_handled(behind);
  ASSERT_NE(table.find(bad), nullptr);
  EXPECT_EQ(table.find(bad)->attempts, 0);
  EXPECT_TRUE(host.pauses.empty());
}

TEST_F(CompanyTest, MessageThatNoHandlerTakesAndThatCannotBePutAsideIsPutOff) {
  add_handler("c", Shape::kJson, "known");
  table.send(3, {.name = "known"});
  worker.run();
  const std::vector<Uuid> good = table.send(20, {.name = "known"});
  const Uuid bad = table.send({.name = "unknown"});
  session.queue.unsettleable = {bad};
  host.wants_end = [&] { return host.delays[bad] >= 3; };
  worker.run();
  expect_handled(good);
  EXPECT_EQ(table.find(bad)->attempts, 0);
  EXPECT_LT(table.find(bad)->attempt_at, kNever);
}

TEST_F(CompanyTest, TroubleOfTheServerIsWaitedOutLongerEachTime) {
  add_handler("c");
  warm({"c"});
  table.send(3, {});
  session.queue.settle_errors.assign(9, Error("53100", "disk full"));
  worker.run();
  EXPECT_TRUE(table.rows.empty());
  ASSERT_GE(host.pauses.size(), 2U);
  EXPECT_TRUE(std::is_sorted(host.pauses.begin(), host.pauses.end()));
}

TEST_F(CompanyTest, ErrorAtCommitIsNotChargedToAMessageThatSomebodyElseHas) {
  add_handler("c");
  warm({"c"});
  Session other(table, clock);
  const Uuid id = table.send({.script = {.failures_at_commit = 1}});
  session.queue.on_again = [&] {
    if (other.transaction.is_open()) return;
    other.transaction.begin();
    Batch held;
    other.queue.again(std::span(&id, 1), clock.now(), held);
  };
  host.wants_end = [&] {
    if (other.transaction.is_open()) other.transaction.rollback();
    session.queue.on_again = nullptr;
    return true;
  };
  worker.run();
  EXPECT_EQ(table.failed(id), 0);
  EXPECT_NE(table.find(id), nullptr);
}

}  // namespace
}  // namespace mq::fake
