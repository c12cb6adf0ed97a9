// Leased calls and what happens around them: lost leases, locked rows, errors of the server, and
// sessions, workers and servers that end.
#include "leased_fixture.hpp"

namespace mq::fake {
namespace {

TEST_F(LeasedTest, LeaseThatIsLostChangesNothing) {
  add_handler();
  for (const int failures : {0, kAlways}) {
    const Uuid released = send({.script = {.failures = failures, .cost = 2 * kSecond}});
    const Uuid gone = send({.script = {.failures = failures, .cost = 2 * kSecond}});
    table.calls[-1] = {12345, "other"};
    worker.interval = kSecond;
    worker.ends = [&, done = false]() mutable {
      if (!done && table.calls.size() == 3) {
        done = true;
        Row* row = table.find(released);
        row->lease = 12345;  // somebody else's, who is alive
        row->attempt_at = clock.time + 1000 * kSecond;
        table.rows.erase(gone);
      }
      return done && table.calls.size() == 1;
    };
    worker.run();
    ASSERT_NE(table.find(released), nullptr);
    EXPECT_EQ(table.find(released)->lease, 12345);
    EXPECT_EQ(table.find(released)->attempts, 1);
    EXPECT_TRUE(table.failures.empty());
    EXPECT_TRUE(table.dead.empty());
    table.rows.erase(released);
  }
}

TEST_F(LeasedTest, CallThatEndsAfterARestoreIsNotSettledAndNoneBegins) {
  add_handler();
  for (const int failures : {0, kAlways}) {
    const Uuid called = send({.retries = 0, .script = {.failures = failures, .cost = 2 * kSecond}});
    worker.ends = [&, until = clock.time + 10 * kSecond] {
      if (store.enabled && backends.calls_of(called) == 1) {
        store.enabled = false;
        send({});
      }
      return clock.time >= until;
    };
    run();
    EXPECT_FALSE(store.enabled);
    EXPECT_EQ(table.rows.size(), 2U);
    EXPECT_EQ(backends.calls.size(), 1U) << "a message was called after the restore";
    ASSERT_NE(table.find(called), nullptr);
    EXPECT_GT(table.find(called)->lease, 0) << "the lease is an orphan";
    EXPECT_TRUE(table.failures.empty());
    EXPECT_TRUE(table.dead.empty());
    EXPECT_EQ(worker.handled, 0U);
    table.rows.clear();
    backends.calls.clear();
    store.enabled = true;
  }
}

TEST_F(LeasedTest, WhatCannotBeSettledIsLeftAsItIsAfterARestore) {
  add_handler();
  worker.registry.find("c")->handlers.back()->message_name = "n";
  for (const char* name : {"n", "other"}) {
    const Uuid id = send({.name = name, .retries = 0});
    store.unspeakable = store.unsettleable = {id};
    store.enabled = true;
    store.restore_at_error = true;
    run_for(10 * kSecond);
    EXPECT_FALSE(store.enabled);
    EXPECT_TRUE(table.dead.empty());
    EXPECT_TRUE(table.failures.empty());
    ASSERT_NE(table.find(id), nullptr);
    EXPECT_EQ(table.find(id)->attempts, 0);
    EXPECT_LE(table.find(id)->attempt_at, clock.time) << "it was put off";
    table.rows.clear();
  }
}

TEST_F(LeasedTest, MessageThatIsLockedIsSettledLater) {
  add_handler();
  const Uuid id = send({.script = {.cost = kSecond}});
  worker.ends = [&] {
    if (backends.finished[id] == 0 && table.find(id)->lease > 0) table.locked_elsewhere.insert(id);
    if (clock.time >= start + 5 * kSecond) table.locked_elsewhere.clear();
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_GE(clock.time, start + 5 * kSecond);
  EXPECT_LT(worker.waits, 100);
}

TEST_F(LeasedTest, SessionThatEndsWithoutAWordIsSettledAfterAWhile) {
  add_handler();
  const Uuid id = send({.retry_backoff = kSecond, .script = {.cost = kSecond, .breaks = 1}});
  run();
  EXPECT_EQ(backends.calls_of(id), 2);
  ASSERT_EQ(table.failures.size(), 1U);
  EXPECT_EQ(table.failures[0].sqlstate, "08006");
  EXPECT_EQ(table.failures[0].duration, kSecond);
  EXPECT_GE(clock.time, start + 7 * kSecond);
}

TEST_F(LeasedTest, HandlerThatRaisesAConnectionFailureIsSettledAtOnce) {
  add_handler();
  send({.retries = 0, .script = {.failures = 1, .sqlstate = "08006"}});
  run();
  EXPECT_EQ(clock.time, start);
  EXPECT_EQ(table.dead.size(), 1U);
}

TEST_F(LeasedTest, CommitThatFailsLeavesNoCallAndTheMessagesComeAgain) {
  add_handler();
  const std::vector<Uuid> sent = send(3, {.retries = 0});
  table.refusals.emplace_back("53100", "disk full");
  store.lease_errors.emplace_back("53100", "disk full");
  bool empty_after_errors = true;
  worker.ends = [&] {
    if (!store.warnings.empty() && backends.calls.empty())
      empty_after_errors = empty_after_errors && table.calls.empty();
    return table.rows.empty();
  };
  run();
  EXPECT_TRUE(empty_after_errors);
  EXPECT_EQ(store.warnings.size(), 2U);
  for (const Uuid& id : sent) EXPECT_EQ(backends.finished[id], 1);
  EXPECT_TRUE(table.failures.empty());
}

TEST_F(LeasedTest, MessageThatCannotBeSentIsChargedAndHoldsNobodyUp) {
  add_handler();
  const Uuid bad = send({.retries = 1});
  const Uuid good = send({.retries = 0});
  store.unspeakable = {bad};
  run();
  EXPECT_EQ(backends.finished[good], 1);
  EXPECT_EQ(table.failed(bad), 2);
  EXPECT_EQ(table.died(bad), 1);
  EXPECT_EQ(table.dead[0].attempts, 2);
  EXPECT_EQ(backends.calls_of(bad), 0);
  EXPECT_TRUE(store.warnings.empty());
}

TEST_F(LeasedTest, BatchThatCannotBeSentGoesOneByOne) {
  add_handler("c", Shape::kBatch);
  const std::vector<Uuid> good = send(4, {.retries = 0});
  const Uuid bad = send({.retries = 0});
  store.unspeakable = {bad};
  run();
  for (const Uuid& id : good) EXPECT_EQ(backends.finished[id], 1);
  EXPECT_EQ(table.failures.size(), 1U);
  EXPECT_EQ(table.died(bad), 1);
}

TEST_F(LeasedTest, MessageThatNoHandlerTakesAndThatCannotBePutAsideIsPutOff) {
  add_handler().message_name = "known";
  const Uuid bad = send({.name = "unknown"});
  const std::vector<Uuid> good = send(4, {.name = "known"});
  store.unsettleable = {bad};
  run_for(30 * kSecond);
  for (const Uuid& id : good) EXPECT_EQ(backends.finished[id], 1);
  EXPECT_EQ(table.find(bad)->attempts, 0);
  EXPECT_LT(worker.hurried, 30);
}

TEST_F(LeasedTest, ErrorsWhileSettlingAreTriedAgain) {
  add_handler();
  const Uuid id = send({.script = {.cost = 20 * kSecond}});
  worker.ends = [&, done = false]() mutable {
    if (!done && table.find(id) != nullptr && table.find(id)->lease > 0) {
      done = true;
      store.settle_errors.assign(3, Error("53100", "disk full"));
      store.renew_errors.emplace_back("53100", "disk full");
    }
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(store.warnings.size(), 4U);
  EXPECT_EQ(clock.time, start + (20 + 1 + 2 + 4) * kSecond) << "the call, and longer pauses each time";
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_TRUE(table.failures.empty());
}

// A turn that closes sessions and then fails must not leave their sockets to be waited for.
TEST_F(LeasedTest, ErrorAfterSessionsWereClosedLeavesNoSocketToWaitFor) {
  add_handler();
  send({});
  const Uuid id = send({.delay = 5 * kSecond + 1});  // the session of the first is closed then
  worker.ends = [&, due = false]() mutable {
    if (!due && clock.time > start + 4 * kSecond) due = true, store.due_errors.emplace_back("53200", "out of memory");
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(store.warnings.size(), 1U);
  EXPECT_EQ(backends.opened, 2);
  EXPECT_EQ(backends.finished[id], 1);
}

// --- Crashes and orphans ---

TEST_F(LeasedTest, CallsThatTheServersEndCutShortAreChargedAndRunAlone) {
  add_handler();
  const Message message{.retry_backoff = kSecond, .script = {.cost = 2 * kSecond}};
  for (std::int64_t token = 1; token <= 3; ++token)
    table.aborted_calls.push_back({.message = send_leased(message, token), .messages = 3, .token = token});
  send(3, message);
  int most = 0;
  worker.ends = [&] {
    if (clock.time < start + 6 * kSecond) most = std::max(most, static_cast<int>(table.calls.size()));
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(most, 1);
  EXPECT_EQ(backends.most_running, 3);  // afterwards together again
  EXPECT_EQ(store.concurrency[0], 0);
  ASSERT_EQ(table.failures.size(), 3U);
  for (const FailedAttempt& failed : table.failures) {
    EXPECT_EQ(failed.sqlstate, "57P02");
    EXPECT_EQ(failed.attempt, 1);
  }
  EXPECT_EQ(backends.finished.size(), 6U);
  for (const auto& [id, times] : backends.finished) EXPECT_EQ(times, 1);
}

TEST_F(LeasedTest, SecondCrashUnderAMessageBuriesIt) {
  add_handler();
  const Uuid id = send_leased({}, 1, 2);
  table.failures.push_back({id, 1, "57P02", 0, true});
  table.aborted_calls = {{.message = id, .token = 1}};
  run();
  ASSERT_EQ(table.dead.size(), 1U);
  EXPECT_EQ(table.dead[0].reason, "crashed");
  EXPECT_EQ(table.dead[0].attempts, 2);
  EXPECT_TRUE(backends.calls.empty());
}

TEST_F(LeasedTest, CallsWhoseProcessWasKilledAreChargedButNotDeadBeforeTheirRetriesAreUsedUp) {
  add_handler();
  const Uuid id = send_leased({}, 1, 2);
  table.failures.push_back({id, 1, "57P02", 0, true});
  table.aborted_calls = {{.message = id, .reason = AbortReason::kKilled, .token = 1}};
  run();
  EXPECT_TRUE(table.dead.empty());
  EXPECT_EQ(table.failed(id), 2);
  EXPECT_EQ(backends.finished[id], 1);
}

TEST_F(LeasedTest, ACallWhoseSessionWasToldToGoByTheServerIsNotCharged) {
  add_handler();
  const Uuid id = send({.retries = 0, .script = {.cost = 5 * kSecond}});
  bool lost = false;
  worker.ends = [&] {
    for (auto& [backend, one] : backends.sessions)
      if (one->is_running() && !lost) {
        lost = store.told = true;
        one->lose(Error("57P01", "terminating connection due to administrator command"));
        return false;
      }
    store.told = store.told && !backends.sessions.empty();
    return table.rows.empty();
  };
  run();
  EXPECT_TRUE(lost);
  EXPECT_TRUE(table.failures.empty());
  EXPECT_TRUE(table.dead.empty());
  EXPECT_EQ(backends.finished[id], 1);
}

TEST_F(LeasedTest, CrashOfABatchChargesNobodyAndRunsItOneByOne) {
  add_handler("c", Shape::kBatch);
  for (int i = 0; i < 3; ++i) send_leased({.retries = 0}, 1);
  table.aborted_calls = {{.message = table.rows.begin()->first, .token = 1}};
  run();
  EXPECT_EQ(backends.calls.size(), 3U);
  EXPECT_TRUE(table.failures.empty());
  EXPECT_EQ(backends.finished.size(), 3U);
}

TEST_F(LeasedTest, CrashOfACallWhoseLeaseWasNotCommittedChargesNobody) {
  add_handler();
  const Uuid id = send({.retries = 0});
  table.aborted_calls = {{.message = id, .messages = 1, .token = 77}};
  run();
  EXPECT_TRUE(table.failures.empty());
  EXPECT_EQ(backends.finished[id], 1);
}

TEST_F(LeasedTest, OrphansAreGivenBackUncharged) {
  add_handler();
  const Uuid id = send_leased({.retry_backoff = kSecond}, 5);
  const Uuid last = send_leased({.retries = 0}, 6);
  run();
  EXPECT_TRUE(table.failures.empty());
  EXPECT_TRUE(table.dead.empty());
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_EQ(backends.finished[last], 1);
  EXPECT_LE(clock.time, start + 3 * kSecond);
}

TEST_F(LeasedTest, LeaseOfAnotherWorkerIsLeftAloneThoughItIsOver) {
  add_handler();
  const Uuid id = send_leased({}, 5);
  table.find(id)->attempt_at = clock.time - kSecond;
  table.calls[1000] = {5, "c"};
  worker.ends = [&] { return clock.time >= start + 60 * kSecond; };
  worker.run();
  EXPECT_TRUE(backends.calls.empty());
  EXPECT_EQ(table.find(id)->lease, 5);
  EXPECT_LT(worker.waits, 1000);
}

// --- The end ---

TEST_F(LeasedTest, WorkerThatIsToEndBeginsNothingAndWaitsForWhatRuns) {
  add_handler();
  store.sessions = 2;
  const std::vector<Uuid> sent = send(3, {.script = {.cost = 40 * kSecond}});
  worker.ends = [&] { return table.calls.size() == 2; };
  run();
  EXPECT_EQ(clock.time, start + 40 * kSecond);
  EXPECT_EQ(backends.calls.size(), 2U);
  EXPECT_EQ(table.rows.size(), 1U);
  EXPECT_EQ(store.renewals.size(), 2U);
  EXPECT_EQ(table.find(sent[2])->attempts, 0);
}

TEST_F(LeasedTest, WorkerThatIsToEndWaitsForConnectionsThatAreBeingOpened) {
  add_handler();
  send({});
  backends.connect_takes = 3 * kSecond;
  worker.ends = [&] { return backends.opened > 0; };
  run();
  EXPECT_TRUE(backends.calls.empty());
  EXPECT_EQ(clock.time, start + 3 * kSecond);
}

TEST_F(LeasedTest, WorkerThatMustNotWaitLeavesItsLeasesToTheNext) {
  add_handler();
  const Uuid id = send({.retry_backoff = kSecond, .script = {.cost = 40 * kSecond}});
  {
    FakeWorker closed(backends);
    closed.add_handler();
    closed.ends = [&] { return table.calls.size() == 1; };
    closed.waits_to_leave = false;
    closed.run();
  }
  EXPECT_TRUE(table.calls.empty());
  EXPECT_TRUE(backends.sessions.empty());
  run();
  EXPECT_EQ(table.failed(id), 0);
  EXPECT_EQ(backends.finished[id], 1);
}

}  // namespace
}  // namespace mq::fake
