// What a background worker does between its batches, and when it ends.
#include <gtest/gtest.h>

#include <numeric>

#include "worker.hpp"
#include "worker_fixture.hpp"

namespace mq::fake {
namespace {

TEST_F(WorkerTest, SleepsUntilTheNextMessageIsDue) {
  add_handler("c");
  const Uuid id = table.send({.delay = 3 * kSecond});
  table.send({.channel_name = "without handler", .delay = kSecond});
  worker.run();
  EXPECT_EQ(table.handled(id), 1);
  EXPECT_EQ(host.waits, (std::vector<Micros>{3 * kSecond, 0}));
}

TEST_F(WorkerTest, SleepsNoLongerThanThePollInterval) {
  add_handler("c");
  table.send({.delay = 17 * kSecond});
  worker.run();
  EXPECT_EQ(host.waits, (std::vector<Micros>{5 * kSecond, 5 * kSecond, 5 * kSecond, 2 * kSecond, 0}));
}

TEST_F(WorkerTest, SleepsThePollIntervalWhenThereIsNothing) {
  add_handler("c");
  host.wants_end = [&] { return host.waits.size() == 3; };
  worker.run();
  EXPECT_EQ(host.waits, (std::vector<Micros>(3, 5 * kSecond)));
}

TEST_F(WorkerTest, SleepsWhileOthersWorkOnWhatIsDue) {
  add_handler("c");
  table.send({});
  Session rival(table, clock);
  rival.transaction.begin();
  Batch theirs;
  rival.queue.oldest("c", clock.now(), std::nullopt, 1, theirs);
  const Micros end = clock.time + 60 * kSecond;
  host.wants_end = [&] { return clock.time >= end; };
  host.patience = 1000;
  worker.run();
  EXPECT_EQ(table.effects.size(), 0U);
}

TEST_F(WorkerTest, SleepsWhileTheWorkersOfAChannelAreAtTheirMost) {
  add_handler("c").max_workers = 1;
  session.queue.places_taken["c"] = 1;
  table.send({});
  const Micros end = clock.time + 60 * kSecond;
  host.wants_end = [&] { return clock.time >= end; };
  host.patience = 1000;
  worker.run();
  EXPECT_EQ(table.effects.size(), 0U);
}

TEST_F(WorkerTest, DoesNotSleepWhileThereIsWork) {
  add_handler("c");
  table.send(5000, {});
  worker.run();
  EXPECT_EQ(std::accumulate(host.waits.begin(), host.waits.end(), Micros{0}), 0);
}

TEST_F(WorkerTest, TellsWhetherThereIsABacklog) {
  add_handler("c");
  table.send(1000, {});
  table.send({.delay = kSecond});
  worker.run();
  ASSERT_GE(host.backlogs.size(), 3U);
  EXPECT_TRUE(host.backlogs.front());
  EXPECT_FALSE(host.backlogs.back());
}

TEST_F(WorkerTest, SaysWhatItIsDoingAndWhenItRests) {
  add_handler("c");
  table.send(3, {});
  table.send({.delay = kSecond});
  worker.run();
  EXPECT_EQ(host.reports, (std::vector<std::string>{"c: 1 messages", "c: 2 messages", "", "c: 1 messages"}));
}

TEST_F(WorkerTest, SweepsOnceInAPollInterval) {
  add_handler("c");
  table.send({.delay = 23 * kSecond});
  worker.run();
  EXPECT_EQ(host.sweeps, 5);
}

TEST_F(WorkerTest, SweepsHoweverBusyItIs) {
  add_handler("c");
  table.send(60, {.script = {.cost = kSecond}});
  worker.run();
  EXPECT_GE(host.sweeps, 10);
  EXPECT_LE(host.sweeps, 13);
}

TEST_F(WorkerTest, SweepsThoughTheClockWentBack) {
  add_handler("c");
  host.wants_end = [&] {
    clock.time -= 3600 * kSecond;
    return host.waits.size() == 10;
  };
  worker.run();
  EXPECT_EQ(host.sweeps, 10);
}

TEST_F(WorkerTest, GoesOnAtOnceWhenASweepFoundSomething) {
  add_handler("c");
  const Uuid id = table.send({.delay = 3600 * kSecond});
  host.on_sweep = [&] {
    table.find(id)->attempt_at = clock.time;
    return true;
  };
  worker.run();
  EXPECT_EQ(table.handled(id), 1);
  EXPECT_EQ(host.waits, (std::vector<Micros>{0, 0}));
}

TEST_F(WorkerTest, ASweepOfWhichAStepFailsIsToldAndDoneAgainSoon) {
  add_handler("c");
  host.interval = 3600 * kSecond;
  host.sweep_failure = Error("23503", "something refers to it");
  host.wants_end = [&] {
    if (host.sweeps == 2) host.sweep_failure.reset();
    return host.sweeps == 3;
  };
  worker.run();
  EXPECT_EQ(host.sweeps, 3);
  EXPECT_EQ(host.waits, (std::vector<Micros>{kLongestPause, kLongestPause, 3600 * kSecond}));
  ASSERT_EQ(host.warnings.size(), 2U);
  EXPECT_EQ(host.warnings[0].message, "something refers to it");
}

TEST_F(WorkerTest, RunUntilEmptySweepsBeforeItSaysThatNothingIsReady) {
  add_handler("c");
  const Uuid id = table.send({.delay = 3600 * kSecond});
  host.on_sweep = [&] {
    if (Row* row = table.find(id)) row->attempt_at = clock.time;
    return host.sweeps == 1;
  };
  host.wants_end = [] { return false; };
  EXPECT_EQ(run_until_empty(), 1);
  EXPECT_EQ(host.sweeps, 2);
}

TEST_F(WorkerTest, TakesUpHandlersAsTheyAreRegistered) {
  add_handler("c");
  table.send({.channel_name = "late"});
  host.wants_end = [&] {
    if (host.waits.size() == 2) add_handler("late");
    return table.rows.empty();
  };
  worker.run();
  EXPECT_EQ(table.effects.size(), 1U);
}

// --- Its end ---

TEST_F(WorkerTest, LeavesWhenItWasIdleForLongEnough) {
  add_handler("c");
  table.send(3, {});
  table.send({.delay = 3600 * kSecond});
  host.leave_when_idle_for = 20 * kSecond;
  const Micros start = clock.time;
  worker.run();
  EXPECT_EQ(table.effects.size(), 3U);
  EXPECT_EQ(clock.time - start, 20 * kSecond);
}

TEST_F(WorkerTest, IsNotIdleWhileItFindsMessages) {
  add_handler("c");
  for (int i = 1; i <= 20; ++i) table.send({.delay = i * 3 * kSecond});
  host.leave_when_idle_for = 5 * kSecond;
  worker.run();
  EXPECT_EQ(table.effects.size(), 20U);
}

TEST_F(WorkerTest, EndsWithinABatchWhenItIsToHurry) {
  add_handler("c");
  table.send(50, {});
  caller.hurry_after = 10;
  host.wants_end = [&] { return caller.hurry(); };
  worker.run();
  EXPECT_EQ(table.effects.size(), 10U);
  EXPECT_EQ(table.rows.size(), 40U);
  EXPECT_FALSE(transaction.is_open());
}

TEST_F(WorkerTest, EndsWhenThereIsNothingToWorkForAnyMore) {
  add_handler("c");
  table.send({});
  host.installed_for = 0;
  worker.run();
  EXPECT_EQ(run_until_empty(), 0);
  EXPECT_EQ(host.sweeps, 0);
  EXPECT_TRUE(host.waits.empty());
  EXPECT_TRUE(caller.calls.empty());
  EXPECT_FALSE(transaction.is_open());
}

// --- Casualties ---

TEST_F(WorkerTest, MessageThatBroughtTheServerDownIsChargedAndDeadTheSecondTime) {
  add_handler("c");
  const Uuid id = table.send({});
  host.ended_calls = {{.message = id}};
  host.wants_end = [] { return true; };  // down again, before it is due
  worker.run();
  EXPECT_EQ(table.failed(id), 1);
  EXPECT_TRUE(table.dead.empty());
  EXPECT_TRUE(caller.calls.empty());
  host.ended_calls = {{.message = id}};
  Worker(session.ports()).run();
  ASSERT_EQ(table.dead.size(), 1U);
  EXPECT_EQ(table.dead[0].reason, "crashed");
  EXPECT_EQ(table.dead[0].attempts, 2);
  EXPECT_TRUE(caller.calls.empty());
}

TEST_F(WorkerTest, ChargesEachCasualtyForWhatItDid) {
  add_handler("c").max_backoff = 20 * kSecond;
  add_handler("o").block_on_dead = true;
  const Uuid crashed = table.send({.retry_backoff = 100 * kSecond});
  const Uuid gone = table.send({});
  const Uuid overran = table.send({.channel_name = "o", .ordered = true, .retries = 0});
  table.erase(gone);
  host.ended_calls = {{.message = overran, .loss = Loss::kOverrun}, {.message = gone}, {.message = crashed}};
  const Micros start = clock.time;
  worker.run();
  ASSERT_EQ(table.failures.size(), 2U);
  EXPECT_EQ(table.failures[0].id, overran);
  EXPECT_EQ(table.failures[0].sqlstate, "57014");
  EXPECT_EQ(table.failures[1].id, crashed);
  EXPECT_EQ(table.failures[1].sqlstate, "57P02");
  EXPECT_EQ(table.handled(crashed), 1);
  EXPECT_LE(clock.time - start, 22 * kSecond);
  EXPECT_EQ(table.died(overran), 1);
  EXPECT_TRUE(table.find(overran)->blocks);
}

TEST_F(WorkerTest, MessagesOfABatchThatBroughtTheServerDownRunAloneUncharged) {
  add_handler("c", Shape::kBatch);
  const std::vector<Uuid> sent = table.send(100, {});
  host.ended_calls = {{.message = sent[0], .messages = 20}};
  worker.run();
  expect_handled(sent);
  for (std::size_t i = 0; i < 20; ++i) EXPECT_EQ(history[i].claimed, 1U);
  EXPECT_GT(history[20].claimed, 1U);
}

TEST_F(WorkerTest, LeavesCasualtiesToAnotherWhenItIsAboutToLeave) {
  host.installed_for = 0;
  host.ended_calls = {{.message = table.send({})}};
  worker.run();
  EXPECT_EQ(host.ended_calls.size(), 1U);
}

TEST_F(WorkerTest, GoesOnThoughACasualtyCannotBeCharged) {
  add_handler("c");
  const Uuid id = table.send({});
  host.ended_calls = {{.message = id}};
  session.queue.settle_errors.emplace_back("53100", "disk full");
  worker.run();
  EXPECT_EQ(host.warnings.size(), 1U);
  EXPECT_EQ(table.handled(id), 1);
}

TEST_F(WorkerTest, CasualtyThatCannotBeChargedNowIsChargedLater) {
  add_handler("c");
  const Uuid id = table.send({.delay = 10 * kSecond});
  host.ended_calls = {{.message = id}};
  session.queue.settle_errors.emplace_back("53100", "disk full");
  worker.run();
  EXPECT_EQ(table.failed(id), 1);
  EXPECT_TRUE(host.ended_calls.empty());
  EXPECT_EQ(table.handled(id), 1);
}

// --- Trouble ---

TEST_F(WorkerTest, GoesOnAfterAnErrorWithAWarningAndAPause) {
  add_handler("c");
  const std::vector<Uuid> sent = table.send(10, {});
  session.queue.claim_errors.emplace_back("53200", "out of memory");
  worker.run();
  ASSERT_EQ(host.warnings.size(), 1U);
  EXPECT_EQ(host.warnings[0].sqlstate, "53200");
  EXPECT_EQ(host.pauses, std::vector<Micros>{kSecond});
  expect_handled(sent);
}

TEST_F(WorkerTest, ErrorWhileSettlingUndoesTheBatchAndChargesNobody) {
  add_handler("c");
  std::vector<Uuid> sent = table.send(10, {});
  for (const Uuid& id : table.send(10, {.ordered = true})) sent.push_back(id);
  session.queue.settle_errors.emplace_back("53100", "disk full");
  worker.run();
  EXPECT_EQ(host.warnings.size(), 1U);
  EXPECT_FALSE(history.front().committed);
  expect_handled(sent);
}

TEST_F(WorkerTest, ErrorsWithoutEndDoNotMakeItSpin) {
  add_handler("c");
  table.send(10, {});
  session.queue.claim_errors.assign(100'000, Error("53200", "out of memory"));
  const Micros end = clock.time + 60 * kSecond;
  host.wants_end = [&] { return clock.time >= end; };
  worker.run();
  EXPECT_LE(host.warnings.size(), 60U);
}

TEST_F(WorkerTest, CommitThatFailsWithoutEndDoesNotMakeItSpin) {
  add_handler("c");
  for (const char* sqlstate : {"53100", "23503"}) {
    SCOPED_TRACE(sqlstate);
    table.send({.has_payload = false});
    transaction.refusals.assign(100'000, Error(sqlstate, "no commit today"));
    host.warnings.clear();
    host.wants_end = [this, end = clock.time + 60 * kSecond] { return clock.time >= end; };
    host.patience = 1000;
    worker.run();
    EXPECT_GE(host.warnings.size(), 1U);
  }
}

TEST_F(WorkerTest, ErrorBecauseTheExtensionIsGoneEndsIt) {
  add_handler("c");
  table.send({});
  session.queue.claim_errors.emplace_back("42P01", "relation does not exist");
  host.installed_for = 1;  // as the batch begins
  worker.run();
  EXPECT_TRUE(session.queue.claim_errors.empty());
  EXPECT_TRUE(host.warnings.empty());
  EXPECT_TRUE(host.waits.empty());
  EXPECT_FALSE(transaction.is_open());
}

TEST_F(WorkerTest, RunUntilEmptyLeavesAnErrorToItsCaller) {
  add_handler("c");
  table.send({});
  session.queue.claim_errors.emplace_back("53200", "out of memory");
  EXPECT_THROW(run_until_empty(), Error);
}

}  // namespace
}  // namespace mq::fake
