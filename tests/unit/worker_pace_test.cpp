// How much of the queue a worker's transaction takes, and from whom.
#include <gtest/gtest.h>

#include "dispatch.hpp"
#include "worker.hpp"
#include "worker_fixture.hpp"

namespace mq::fake {
namespace {

TEST_F(WorkerTest, CommitsAfterASliceAndClaimsTheRestAgain) {
  add_handler("c");
  const std::vector<Uuid> sent = table.send(100, {.script = {.cost = 30 * kMillisecond}});
  run_until_empty();
  expect_handled(sent);
  for (const auto& record : history) {
    EXPECT_LE(record.took, kSlice + 30 * kMillisecond);
    EXPECT_GE(record.handled, 1U);
  }
  EXPECT_GT(history.front().claimed, history.front().handled);
}

TEST_F(WorkerTest, ClaimsNoMoreThanFitsIntoASlice) {
  add_handler("c");
  table.send(100, {.script = {.cost = 30 * kMillisecond}});
  run_until_empty();
  for (std::size_t i = 1; i < history.size(); ++i) EXPECT_LE(history[i].claimed, 8U);
}

TEST_F(WorkerTest, FitsTheCallsOfABatchHandlerIntoASlice) {
  add_handler("c", Shape::kBatch);
  table.send(300, {.script = {.cost = 30 * kMillisecond}});
  run_until_empty();
  ASSERT_GT(history.size(), 3U);
  for (std::size_t i = 1; i < history.size(); ++i) EXPECT_LE(history[i].took, kSlice + 30 * kMillisecond);
}

TEST_F(WorkerTest, MakesLargeBatchesOfFastMessages) {
  add_handler("c");
  table.send(10'000, {.script = {.cost = 1}});
  EXPECT_EQ(run_until_empty(), 10'000);
  EXPECT_LE(history.size(), 30U);
}

TEST_F(WorkerTest, MakesLargeBatchesOfOrderedMessages) {
  add_handler("c");
  table.send(5000, {.ordered = true, .script = {.cost = 1}});
  EXPECT_EQ(run_until_empty(), 5000);
  EXPECT_LE(history.size(), 20U);
}

TEST_F(WorkerTest, GrowsItsBatchesAgainBehindSlowMessages) {
  add_handler("c");
  table.send(10, {.script = {.cost = kSecond}});
  table.send(3000, {.script = {.cost = 1}});
  run_until_empty();
  EXPECT_LE(history.size(), 10U + 25U);
}

TEST_F(WorkerTest, CallThatChangesOthersDoesNotShrinkTheBatch) {
  add_handler("c");
  table.send(2000, {.script = {.cost = 1}});
  table.send(1, {.script = {.changes_others = true, .cost = 1}});
  table.send(3000, {.script = {.cost = 1}});
  EXPECT_EQ(run_until_empty(), 5001);
  EXPECT_LE(history.size(), 20U);
}

TEST_F(WorkerTest, ConflictDoesNotShrinkTheBatch) {
  add_handler("c");
  table.send({.script = {.conflicts = 8}});
  table.send(2000, {});
  run_until_empty();
  for (std::size_t i = 0; i + 1 < history.size(); ++i) EXPECT_GE(history[i].claimed, 64U);
}

TEST_F(WorkerTest, TakesNoMoreThanTheHostAllows) {
  add_handler("c");
  host.batch_limit = 7;
  table.send(100, {});
  run_until_empty();
  for (const auto& record : history) EXPECT_LE(record.claimed, 7U);
}

TEST_F(WorkerTest, HandlerGetsNoMoreThanItsBatchSize) {
  add_handler("c", Shape::kBatch).batch_size = 3;
  const std::vector<Uuid> sent = table.send(10, {});
  run_until_empty();
  expect_handled(sent);
  for (const auto& call : caller.calls) EXPECT_LE(call.size(), 3U);
  for (const auto& record : history) EXPECT_LE(record.claimed, 3U);
}

TEST_F(WorkerTest, BatchSizeHoldsForEachHandlerOfAChannel) {
  for (const char* name : {"c", ""}) {
    add_handler(name, Shape::kBatch).batch_size = 100;
    add_handler(name, Shape::kBatch, "one by one").batch_size = 1;
    for (int i = 0; i < 20; ++i) {
      table.send({.channel_name = name, .ordered = true});
      table.send({.channel_name = name, .name = "one by one", .ordered = true});
    }
    EXPECT_EQ(run_until_empty(), 40);
  }
  for (const auto& record : history) EXPECT_LE(record.handled, 3U);
}

TEST_F(WorkerTest, HandlerThatHasHadItsFillDoesNotShutOutOtherChannels) {
  add_handler("a").batch_size = 500;
  add_handler("a", Shape::kJson, "one by one").batch_size = 1;
  add_handler("b");
  table.send(1000, {.channel_name = "a", .name = "one by one"});
  table.send(10, {.channel_name = "b"});
  clock.dices = {0.0};  // the claim begins with the first
  run_until_empty(500);
  EXPECT_EQ(history.front().handled, 11U);
}

TEST_F(WorkerTest, FloodedChannelDoesNotShutOutOtherChannels) {
  add_handler("a");
  add_handler("b");
  table.send(1000, {.channel_name = "a", .script = {.cost = kSecond}});
  const std::vector<Uuid> others = table.send(3, {.channel_name = "b"});
  run_until_empty(60);
  for (const Uuid& id : others) EXPECT_EQ(table.handled(id), 1);
}

TEST_F(WorkerTest, LeavesAChannelWhoseWorkersAreAtTheirMost) {
  add_handler("c").max_workers = 2;
  add_handler("d").max_workers = 2;
  session.queue.places_taken = {{"c", 2}, {"d", 1}};
  const Uuid left = table.send({});
  const Uuid taken = table.send({.channel_name = "d"});
  EXPECT_EQ(run_until_empty(), 1);
  EXPECT_EQ(table.handled(left), 0);
  EXPECT_EQ(table.handled(taken), 1);
}

// --- Collisions ---

TEST_F(WorkerTest, ChannelWhoseCallsCollideHasOneToATransactionForAWhile) {
  add_handler("c");
  add_handler("other");
  std::vector<Uuid> sent = table.send(50, {.script = {.collides = true}});
  for (const Uuid& id : table.send(50, {.channel_name = "other"})) sent.push_back(id);
  worker.run();
  expect_handled(sent);
  EXPECT_LE(caller.calls.size(), 160U) << "what had worked runs once more, and one call that collided";
  EXPECT_GE(history.size(), 50U);
  const std::size_t before = history.size();
  sent = table.send(20, {.script = {.collides = true}});
  worker.run();
  expect_handled(sent);
  EXPECT_EQ(history.size(), before + 20) << "and none collides";

  clock.time += kCollides;
  const std::size_t later = history.size();
  table.send(20, {});
  worker.run();
  EXPECT_LE(history.size(), later + 2) << "forgotten";
}

// --- Slow failures ---

TEST_F(WorkerTest, FailureThatTakesLongerThanASliceIsCharged) {
  for (const Shape shape : {Shape::kJson, Shape::kBatch}) {
    const std::string name = shape == Shape::kJson ? "single" : "batch";
    add_handler(name, shape);
    std::vector<Uuid> good = table.send(5, {.channel_name = name});
    const Uuid bad =
        table.send({.channel_name = name, .retries = 2, .script = {.failures = kAlways, .cost = 2 * kSecond}});
    for (const Uuid& id : table.send(5, {.channel_name = name})) good.push_back(id);
    worker.run();
    expect_handled(good);
    EXPECT_EQ(table.failed(bad), 3);
    EXPECT_EQ(table.died(bad), 1);
  }
}

TEST_F(WorkerTest, QueueOfSlowFailuresComesToItsEnd) {
  add_handler("c");
  add_handler("b", Shape::kBatch);
  table.send(30, {.retries = 1, .script = {.failures = kAlways, .cost = kSecond}});
  table.send(30, {.channel_name = "b", .retries = 1, .script = {.failures = kAlways, .cost = kSecond}});
  worker.run();
  EXPECT_EQ(table.dead.size(), 60U);
  EXPECT_EQ(table.failures.size(), 120U);
  for (const Dead& letter : table.dead) EXPECT_EQ(letter.attempts, 2);
}

TEST_F(WorkerTest, QueueOfFailuresUsesAFewSavepointsATransaction) {
  add_handler("c");
  for (int i = 0; i < 400; ++i) {
    table.send({});
    table.send({.retries = 0, .script = {.failures = kAlways}});
  }
  worker.run();
  EXPECT_EQ(table.effects.size(), 400U);
  EXPECT_EQ(table.dead.size(), 400U);
  for (const auto& record : history) EXPECT_LE(record.released, kMostSavepoints);
}

}  // namespace
}  // namespace mq::fake
