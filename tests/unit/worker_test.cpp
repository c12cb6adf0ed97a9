// What becomes of messages in the hands of a worker.
#include "worker.hpp"

#include <gtest/gtest.h>

#include "worker_fixture.hpp"

namespace mq::fake {
namespace {

TEST_F(WorkerTest, HandlesEachMessageOnceAndLeavesNothing) {
  add_handler("c");
  add_handler("o", Shape::kBatch);
  std::vector<Uuid> sent = table.send(100, {});
  for (const Uuid& id : table.send(100, {.channel_name = "o", .ordered = true})) sent.push_back(id);
  EXPECT_EQ(run_until_empty(), 200);
  expect_handled(sent);
  EXPECT_TRUE(table.rows.empty());
  EXPECT_EQ(host.told_handled, 200U);
}

TEST_F(WorkerTest, StopsAtTheNumberThatItWasGiven) {
  add_handler("c");
  const std::vector<Uuid> sent = table.send(100, {});
  EXPECT_EQ(run_until_empty(0), 0);
  EXPECT_EQ(host.sweeps, 0);
  EXPECT_EQ(run_until_empty(1), 1);
  EXPECT_EQ(run_until_empty(69), 69);
  EXPECT_EQ(table.rows.size(), 30U);
  EXPECT_EQ(run_until_empty(1000), 30);
  expect_handled(sent);
}

TEST_F(WorkerTest, KeepsToTheChannelsThatItWasGiven) {
  for (const char* name : {"a", "b", "c"}) {
    add_handler(name);
    table.send(10, {.channel_name = name});
  }
  const std::vector<std::string_view> only{"c", "a", "unheard of"};
  EXPECT_EQ(worker.run_until_empty(std::nullopt, &only), 20);
  EXPECT_EQ(table.rows.size(), 10U);
  EXPECT_EQ(table.rows.begin()->second.channel_name, "b");
}

TEST_F(WorkerTest, LeavesChannelsWithoutHandlerAndParkedOnes) {
  add_handler("c");
  add_handler("parked");
  host.parked["parked"] = "its function is gone";
  table.send({.channel_name = "without"});
  table.send({.channel_name = "parked"});
  const Uuid sent = table.send({});
  EXPECT_EQ(run_until_empty(), 1);
  expect_handled({sent});
  EXPECT_EQ(table.rows.size(), 2U);
  EXPECT_TRUE(table.failures.empty());
}

TEST_F(WorkerTest, MessageThatNoHandlerTakesWaitsUnchargedAtNoCostToOthers) {
  add_handler("c", Shape::kJson, "known");
  const std::vector<Uuid> unknown = table.send(1000, {.name = "unknown"});
  const std::vector<Uuid> known = table.send(10, {.name = "known"});
  EXPECT_EQ(run_until_empty(), 10);
  expect_handled(known);
  EXPECT_EQ(table.rows.size(), 1000U);
  for (const auto& [place, row] : table.rows) EXPECT_EQ(row.attempts, 0);
  EXPECT_TRUE(table.failures.empty());

  const int claims = session.queue.claims;
  table.send({.name = "known"});
  EXPECT_EQ(run_until_empty(), 1);
  EXPECT_EQ(session.queue.claims, claims + 1) << "claims that find none but those that wait";

  add_handler("c", Shape::kJson, "unknown");
  EXPECT_EQ(run_until_empty(), 1000);
  expect_handled(unknown);
}

TEST_F(WorkerTest, OrderedMessageThatNoHandlerTakesHoldsUpItsChannelAndNoOther) {
  add_handler("o", Shape::kJson, "known");
  const auto send = [&](const char* args, const char* name) {
    return table.send({.channel_name = "o", .channel_args = args, .name = name, .ordered = true});
  };
  const std::vector<Uuid> before = {send("a", "known"), send("a", "known"), send("b", "known")};
  const std::vector<Uuid> unknown = {send("a", "unknown"), send("c", "unknown")};
  const std::vector<Uuid> behind = {send("a", "known"), send("c", "known")};
  EXPECT_EQ(run_until_empty(), 3);
  expect_handled(before);
  for (const Uuid& id : unknown) EXPECT_EQ(table.find(id)->attempt_at, kNever);
  for (const Uuid& id : behind) EXPECT_LT(table.find(id)->attempt_at, kNever);

  add_handler("o");
  EXPECT_EQ(run_until_empty(), 4);
  expect_handled(unknown);
  expect_handled(behind);
}

TEST_F(WorkerTest, CallsTheHandlerOfTheName) {
  add_handler("c").function = "any";
  add_handler("c", Shape::kJson, "paid").function = "exact";
  for (const char* name : {"paid", "sent", "paid"}) table.send({.name = name});
  run_until_empty();
  EXPECT_EQ(caller.functions, (std::vector<std::string>{"exact", "any", "exact"}));
}

// --- Failure ---

TEST_F(WorkerTest, FailedMessageIsTriedAgainAfterItsBackoff) {
  add_handler("c");
  const Uuid id = table.send({.retry_backoff = 10 * kSecond, .script = {.failures = 2}});
  const Micros start = clock.time;
  worker.run();
  EXPECT_EQ(table.handled(id), 1);
  EXPECT_EQ(table.failed(id), 2);
  EXPECT_GE(clock.time - start, 30 * kSecond);
  EXPECT_LE(clock.time - start, 33 * kSecond);
}

TEST_F(WorkerTest, MessageIsDeadAfterOneAttemptMoreThanRetries) {
  add_handler("c");
  for (int retries = 0; retries < 4; ++retries) table.send({.retries = retries, .script = {.failures = kAlways}});
  const std::vector<Uuid> good = table.send(50, {});
  worker.run();
  ASSERT_EQ(table.dead.size(), 4U);
  for (int retries = 0; retries < 4; ++retries) {
    const Dead& letter = table.dead[static_cast<std::size_t>(retries)];
    EXPECT_EQ(letter.reason, "exhausted");
    EXPECT_EQ(letter.sqlstate, "P0001");
    EXPECT_EQ(letter.attempts, retries + 1);
    EXPECT_EQ(caller.calls_of(letter.id), retries + 1);
    EXPECT_EQ(table.failed(letter.id), retries + 1);
  }
  expect_handled(good);
}

TEST_F(WorkerTest, NothingOvertakesAnOrderedMessageThatWaitsForItsRetry) {
  add_handler("c");
  const std::vector<Uuid> before = table.send(5, {.ordered = true});
  const Uuid bad = table.send({.ordered = true, .script = {.failures = 3}});
  const std::vector<Uuid> behind = table.send(5, {.ordered = true});
  worker.run();
  std::vector<Uuid> expected = before;
  expected.push_back(bad);
  expected.insert(expected.end(), behind.begin(), behind.end());
  EXPECT_EQ(table.effects, expected);
  EXPECT_EQ(table.failed(bad), 3);
}

TEST_F(WorkerTest, OrderedChannelSkipsItsDeadOrWaitsForSomebodyToDecide) {
  add_handler("c");
  add_handler("b").block_on_dead = true;
  for (const char* name : {"c", "b"}) {
    table.send({.channel_name = name, .ordered = true, .retries = 1, .script = {.failures = kAlways}});
    table.send({.channel_name = name, .ordered = true});
  }
  worker.run();
  EXPECT_EQ(table.dead.size(), 2U);
  EXPECT_EQ(table.effects.size(), 1U);
  EXPECT_EQ(table.rows.size(), 2U);  // the dead one that blocks, and the one behind it
}

TEST_F(WorkerTest, EachOfFailuresAtRandomIsChargedToItsMessage) {
  add_handler("c", Shape::kBatch);
  const std::vector<Uuid> good = table.send(20, {});
  const Uuid bad = table.send({.script = {.failures = 2, .sqlstate = "22012"}});
  const std::vector<Uuid> more = table.send(20, {});
  worker.run();
  expect_handled(good);
  expect_handled(more);
  EXPECT_EQ(table.handled(bad), 1);
  ASSERT_EQ(table.failures.size(), 2U);
  EXPECT_EQ(table.failures[1].id, bad);
  EXPECT_EQ(table.failures[1].attempt, 2);
  EXPECT_EQ(table.failures[1].sqlstate, "22012");
}

// --- Conflicts ---

TEST_F(WorkerTest, ConflictIsTriedAgainAtOnceAndNotCharged) {
  add_handler("c");
  const Uuid id = table.send({.script = {.conflicts = kMostConflicts}});
  const std::vector<Uuid> others = table.send(10, {});
  const Micros start = clock.time;
  EXPECT_EQ(run_until_empty(), 11);
  expect_handled({id});
  expect_handled(others);
  EXPECT_EQ(caller.calls_of(id), kMostConflicts + 1);
  EXPECT_EQ(clock.time, start);
}

TEST_F(WorkerTest, ConflictWithoutEndIsCharged) {
  add_handler("c");
  const Uuid id = table.send({.retries = 1, .script = {.conflicts = kAlways}});
  worker.run();
  EXPECT_EQ(caller.calls_of(id), 2 * (kMostConflicts + 1));
  EXPECT_EQ(table.failed(id), 2);
  ASSERT_EQ(table.dead.size(), 1U);
  EXPECT_EQ(table.dead[0].sqlstate, "40001");
}

TEST_F(WorkerTest, ConflictsAreCountedInARow) {
  add_handler("c");
  const Uuid id = table.send({});
  caller.during = [&] {
    const auto call = static_cast<int>(caller.calls.size());
    Script& script = table.find(id)->script;
    script.failures = call == kMostConflicts + 1 ? kAlways : 0;
    script.conflicts = script.failures == 0 && call <= 2 * kMostConflicts + 1 ? kAlways : 0;
  };
  worker.run();
  EXPECT_EQ(table.handled(id), 1);
  EXPECT_EQ(table.failed(id), 1);
}

TEST_F(WorkerTest, ConflictInAnOrderedChannelKeepsTheOrder) {
  add_handler("c");
  std::vector<Uuid> sent = table.send(3, {.ordered = true});
  sent.push_back(table.send({.ordered = true, .script = {.conflicts = 5}}));
  sent.push_back(table.send({.ordered = true}));
  run_until_empty();
  EXPECT_EQ(table.effects, sent);
  expect_handled(sent);
}

// --- Commits that fail ---

TEST_F(WorkerTest, FailureAtCommitIsChargedToTheMessageThatCausedIt) {
  for (const Shape shape : {Shape::kJson, Shape::kBatch}) {
    const std::string name = shape == Shape::kJson ? "single" : "batch";
    add_handler(name, shape);
    std::vector<Uuid> good = table.send(10, {.channel_name = name});
    const Uuid bad = table.send({.channel_name = name, .retries = 2, .script = {.failures_at_commit = kAlways}});
    for (const Uuid& id : table.send(10, {.channel_name = name})) good.push_back(id);
    worker.run();
    expect_handled(good);
    EXPECT_EQ(table.handled(bad), 0);
    EXPECT_EQ(table.failed(bad), 3);
    EXPECT_EQ(table.died(bad), 1);
    EXPECT_EQ(table.dead.back().sqlstate, "23503");
    EXPECT_EQ(table.dead.back().attempts, 3);
  }
}

TEST_F(WorkerTest, FailureAtCommitOfWhateverClassComesToAnEnd) {
  add_handler("c");
  host.patience = 10'000;
  for (const char* sqlstate : {"23503", "40001", "53200", "57014", "XX000"}) {
    SCOPED_TRACE(sqlstate);
    std::vector<Uuid> good = table.send(5, {});
    const Uuid bad =
        table.send({.retries = 1, .script = {.failures_at_commit = kAlways, .sqlstate_at_commit = sqlstate}});
    for (const Uuid& id : table.send(5, {})) good.push_back(id);
    worker.run();
    for (const Uuid& id : good) EXPECT_EQ(table.handled(id), 1);
    EXPECT_EQ(table.failed(bad), 2);
    EXPECT_EQ(table.died(bad), 1);
    table.clear();
  }
}

TEST_F(WorkerTest, FailureAtCommitHoldsAnOrderedChannelBack) {
  add_handler("c");
  std::vector<Uuid> sent = table.send(3, {.ordered = true});
  sent.push_back(table.send({.ordered = true, .script = {.failures_at_commit = 2}}));
  sent.push_back(table.send({.ordered = true}));
  worker.run();
  EXPECT_EQ(table.effects, sent);
  EXPECT_EQ(table.failures.size(), 2U);
}

TEST_F(WorkerTest, FailureAtCommitIsRecordedAsAnyOther) {
  add_handler("c");
  table.send({.channel_args = "x", .script = {.failures_at_commit = 1, .cost = 70 * kMillisecond}});
  worker.run();
  ASSERT_EQ(table.failures.size(), 1U);
  EXPECT_EQ(table.failures[0].duration, 70 * kMillisecond);
  EXPECT_EQ(table.failures[0].channel_name, "c");
  EXPECT_EQ(table.failures[0].channel_args, "x");
  EXPECT_EQ(table.failures[0].name, "n");
}

TEST_F(WorkerTest, GoesBackToBatchesWhenAFailureAtCommitIsFound) {
  add_handler("c");
  table.send({.script = {.failures_at_commit = 1}});
  const std::vector<Uuid> good = table.send(600, {});
  run_until_empty();
  expect_handled(good);
  EXPECT_FALSE(history.front().committed);
  EXPECT_GT(history.front().claimed, 10U);
  EXPECT_LE(history.size(), 2 + history.front().claimed + 10);
}

TEST_F(WorkerTest, ConflictAtCommitIsNotCharged) {
  add_handler("c");
  const Uuid id = table.send({});
  transaction.refusals.emplace_back("40001", "could not serialize access");
  EXPECT_EQ(run_until_empty(), 1);
  expect_handled({id});
}

TEST_F(WorkerTest, ConflictAtCommitWithoutEndIsCharged) {
  add_handler("c");
  const Uuid id = table.send({});
  transaction.refusals.assign(kMostConflicts + 1, Error("40001", "could not serialize access"));
  worker.run();
  EXPECT_EQ(table.failed(id), 1);
  EXPECT_EQ(table.handled(id), 1);
}

TEST_F(WorkerTest, TroubleAtCommitIsWaitedOutUncharged) {
  add_handler("c");
  for (const int count : {1, 10}) {
    const std::vector<Uuid> sent = table.send(count, {});
    host.warnings.clear();
    transaction.refusals.assign(5, Error("53100", "disk full"));
    const Micros start = clock.time;
    worker.run();
    expect_handled(sent);
    EXPECT_EQ(host.warnings.size(), 5U);
    EXPECT_GE(clock.time - start, 5 * kSecond);
  }
}

TEST_F(WorkerTest, ConflictAtCommitOfABatchIsNotCharged) {
  add_handler("c");
  const std::vector<Uuid> sent = table.send(20, {});
  transaction.refusals.emplace_back("40P01", "deadlock detected");
  EXPECT_EQ(run_until_empty(), 20);
  expect_handled(sent);
}

// --- Wishes ---

TEST_F(WorkerTest, SnoozedMessageComesAgainLaterUnchargedAndKeepsWhatItWrote) {
  add_handler("c");
  const Uuid id = table.send({.retries = 0, .script = {.snoozes = 3}});
  const Micros start = clock.time;
  worker.run();
  EXPECT_EQ(table.kept, std::vector<Uuid>(3, id));
  expect_handled({id});
  EXPECT_EQ(clock.time - start, 3 * kSnooze);
  EXPECT_TRUE(table.dead.empty());
}

TEST_F(WorkerTest, SnoozedMessageHoldsItsOrderedChannelBack) {
  add_handler("c");
  std::vector<Uuid> sent = table.send(2, {.ordered = true});
  sent.push_back(table.send({.ordered = true, .script = {.snoozes = 2}}));
  sent.push_back(table.send({.ordered = true}));
  worker.run();
  EXPECT_EQ(table.effects, sent);
}

TEST_F(WorkerTest, DiscardedMessageIsDeadAndKeepsWhatItWrote) {
  add_handler("c");
  const Uuid id = table.send({.script = {.failures = 1, .discards = true}});
  const Uuid good = table.send({});
  worker.run();
  expect_handled({good});
  EXPECT_EQ(table.kept, std::vector<Uuid>{id});
  ASSERT_EQ(table.dead.size(), 1U);
  EXPECT_EQ(table.dead[0].reason, "discarded");
  EXPECT_EQ(table.dead[0].attempts, 2);
  EXPECT_EQ(table.failed(id), 1);
}

TEST_F(WorkerTest, CountsWishesAmongTheHandled) {
  add_handler("c");
  table.send({.script = {.snoozes = 1}});
  table.send({.script = {.discards = true}});
  table.send(3, {});
  EXPECT_EQ(run_until_empty(), 5);
  EXPECT_EQ(host.told_handled, 5U);
}

// --- What cannot be delivered ---

TEST_F(WorkerTest, ExpiredMessageGoesWithoutATrace) {
  add_handler("c");
  table.send({.delay = kSecond, .uncommitted = true});
  worker.run();
  EXPECT_EQ(table.expired.size(), 1U);
  EXPECT_TRUE(table.rows.empty());
  EXPECT_TRUE(table.dead.empty());
  EXPECT_TRUE(table.failures.empty());
  EXPECT_TRUE(caller.calls.empty());
}

TEST_F(WorkerTest, MessageWithoutPayloadIsDiscardedUncharged) {
  add_handler("c");
  table.send({.has_payload = false});
  EXPECT_EQ(run_until_empty(), 0);
  ASSERT_EQ(table.dead.size(), 1U);
  EXPECT_EQ(table.dead[0].reason, "discarded");
  EXPECT_EQ(table.dead[0].attempts, 0);
  EXPECT_TRUE(table.failures.empty());
}

TEST_F(WorkerTest, ExhaustedLeaseIsBuriedWithTheAttemptsItHad) {
  add_handler("c");
  const Uuid id = table.send({.retries = -1});
  table.find(id)->attempts = 3;
  run_until_empty();
  ASSERT_EQ(table.dead.size(), 1U);
  EXPECT_EQ(table.dead[0].reason, "exhausted");
  EXPECT_EQ(table.dead[0].attempts, 3);
  EXPECT_TRUE(caller.calls.empty());
}

TEST_F(WorkerTest, OrderedChannelGoesOnBehindWhatCannotBeDelivered) {
  add_handler("c");
  const std::vector<Uuid> sent = {
      table.send({.ordered = true}),
      table.send({.ordered = true, .has_payload = false}),
      table.send({.ordered = true}),
      table.send({.ordered = true, .delay = -kSecond, .uncommitted = true}),
      table.send({.ordered = true, .retries = -1}),
      table.send({.ordered = true}),
  };
  EXPECT_EQ(run_until_empty(), 3);
  EXPECT_EQ(table.effects, (std::vector<Uuid>{sent[0], sent[2], sent[5]}));
  EXPECT_TRUE(table.rows.empty());
}

TEST_F(WorkerTest, HandlerThatIsRegisteredWhileItClaimsTakesWhatItClaims) {
  add_handler("c").function = "former(mq_message)";
  host.outdated = [&] {
    host.handlers.front().function = "new(mq_message)";
    host.changed = true;
    return true;
  };
  const Uuid id = table.send({});
  run_until_empty();
  expect_handled({id});
  EXPECT_EQ(caller.functions, std::vector<std::string>{"new(mq_message)"});
}

}  // namespace
}  // namespace mq::fake
