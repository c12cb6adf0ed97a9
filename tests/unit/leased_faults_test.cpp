// What happens to leased handlers around them: lost leases, locked rows, sessions, workers and servers that end, and
// errors of the server at every step.
#include "leased_fixture.hpp"

namespace mq::fake {
namespace {

TEST_F(LeasedTest, LeaseThatIsLostChangesNothing) {
  add_leased();
  for (const int failures : {0, kAlways}) {
    const Uuid released = send({.script = {.failures = failures, .cost = 2 * kSecond}});
    const Uuid gone = send({.script = {.failures = failures, .cost = 2 * kSecond}});
    table.leases[-1] = {12345, "other"};
    host.ready_at = [&](const auto& sockets) { return std::min(backends.ready_at(sockets), clock.steady() + kSecond); };
    host.wants_end = [&, done = false]() mutable {
      if (!done && table.leases.size() == 3) {
        done = true;
        Row* row = table.find(released);
        row->lease = 12345;  // somebody else's, who is alive
        row->attempt_at = clock.time + 1000 * kSecond;
        table.erase(gone);
      }
      return done && table.leases.size() == 1;
    };
    worker.run();
    ASSERT_NE(table.find(released), nullptr);
    EXPECT_EQ(table.find(released)->lease, 12345);
    EXPECT_EQ(table.find(released)->attempts, 1);
    EXPECT_TRUE(table.failures.empty());
    EXPECT_TRUE(table.dead.empty());
    table.erase(released);
  }
}

TEST_F(LeasedTest, MessageThatIsLockedIsSettledLater) {
  add_leased();
  const Uuid id = send({.script = {.cost = kSecond}});
  Session rival(table, clock);
  host.wants_end = [&] {
    if (backends.finished[id] == 0 && table.find(id)->lease > 0 && !rival.transaction.is_open()) {
      rival.transaction.begin();
      rival.transaction.lock(*table.find(id));
    }
    if (clock.time >= start + 5 * kSecond && rival.transaction.is_open()) rival.transaction.rollback();
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_GE(clock.time, start + 5 * kSecond);
  EXPECT_LT(host.waits.size(), 100U);
}

TEST_F(LeasedTest, SessionThatEndsWithoutAWordIsSettledAfterAWhile) {
  add_leased();
  const Uuid id = send({.retry_backoff = kSecond, .script = {.cost = kSecond, .breaks = 1}});
  run();
  EXPECT_EQ(calls_of(id), 2);
  ASSERT_EQ(table.failures.size(), 1U);
  EXPECT_EQ(table.failures[0].sqlstate, "08006");
  EXPECT_EQ(table.failures[0].duration, kSecond);
  EXPECT_GE(clock.time, start + 7 * kSecond);
}

TEST_F(LeasedTest, HandlerThatRaisesAConnectionFailureIsSettledAtOnce) {
  add_leased();
  send({.retries = 0, .script = {.failures = 1, .sqlstate = "08006"}});
  run();
  EXPECT_EQ(clock.time, start);
  EXPECT_EQ(table.dead.size(), 1U);
}

TEST_F(LeasedTest, CommitThatFailsLeavesNoCallAndTheMessagesComeAgain) {
  add_leased();
  const std::vector<Uuid> sent = send(3, {.retries = 0});
  session.transaction.refusals.emplace_back("53100", "disk full");
  store.lease_errors.emplace_back("53100", "disk full");
  bool empty_after_errors = true;
  host.wants_end = [&] {
    if (!host.warnings.empty() && backends.calls.empty())
      empty_after_errors = empty_after_errors && table.leases.empty();
    return table.rows.empty();
  };
  run();
  EXPECT_TRUE(empty_after_errors);
  EXPECT_EQ(host.warnings.size(), 2U);
  for (const Uuid& id : sent) EXPECT_EQ(backends.finished[id], 1);
  EXPECT_TRUE(table.failures.empty());
}

TEST_F(LeasedTest, MessageThatCannotBeSentIsChargedAndHoldsNobodyUp) {
  add_leased();
  const Uuid bad = send({.retries = 1});
  const Uuid good = send({.retries = 0});
  store.unspeakable = {bad};
  run();
  EXPECT_EQ(backends.finished[good], 1);
  EXPECT_EQ(table.failed(bad), 2);
  EXPECT_EQ(table.died(bad), 1);
  EXPECT_EQ(table.dead[0].attempts, 2);
  EXPECT_EQ(calls_of(bad), 0);
  EXPECT_TRUE(host.warnings.empty());
}

TEST_F(LeasedTest, BatchThatCannotBeSentGoesOneByOne) {
  add_leased("l", Shape::kBatch);
  const std::vector<Uuid> good = send(4, {.retries = 0});
  const Uuid bad = send({.retries = 0});
  store.unspeakable = {bad};
  run();
  for (const Uuid& id : good) EXPECT_EQ(backends.finished[id], 1);
  EXPECT_EQ(table.failures.size(), 1U);
  EXPECT_EQ(table.died(bad), 1);
}

TEST_F(LeasedTest, MessageThatNoHandlerTakesAndThatCannotBePutAsideIsPutOff) {
  add_leased().message_name = "known";
  const std::vector<Uuid> good = send(4, {.name = "known"});
  const Uuid bad = send({.name = "unknown"});
  session.queue.unsettleable = {bad};
  run_for(30 * kSecond);
  for (const Uuid& id : good) EXPECT_EQ(backends.finished[id], 1);
  EXPECT_EQ(table.find(bad)->attempts, 0);
  EXPECT_LT(hurried_waits(), 30);
}

TEST_F(LeasedTest, ErrorsWhileSettlingAreTriedAgain) {
  add_leased();
  const Uuid id = send({.script = {.cost = kSecond}});
  host.wants_end = [&, done = false]() mutable {
    if (!done && table.find(id) != nullptr && table.find(id)->lease > 0) {
      done = true;
      session.queue.settle_errors.assign(3, Error("53100", "disk full"));
      store.renew_errors.emplace_back("53100", "disk full");
    }
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(host.warnings.size(), 3U);
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_TRUE(table.failures.empty());
}

// A turn that closes sessions and then fails must not leave their sockets to be waited for.
TEST_F(LeasedTest, ErrorAfterSessionsWereClosedLeavesNoSocketToWaitFor) {
  add_leased();
  send({});
  const Uuid id = send({.delay = 5 * kSecond + 1});  // the session of the first is closed then
  host.on_sweep = [&] {
    if (clock.time >= start + 5 * kSecond) session.queue.claim_errors.assign(1, Error("53200", "out of memory"));
    return false;
  };
  host.add_handler("c");
  table.send({.delay = 5 * kSecond + 1});
  host.wants_end = [&] {
    if (clock.time > start + 4 * kSecond && host.warnings.empty() && session.queue.claim_errors.empty())
      session.queue.claim_errors.assign(1, Error("53200", "out of memory"));
    return table.rows.empty();
  };
  run();
  EXPECT_FALSE(host.warnings.empty());
  EXPECT_EQ(backends.finished[id], 1);
}

// --- Crashes and orphans ---

TEST_F(LeasedTest, CallsThatTheServersEndCutShortAreChargedAndRunAlone) {
  add_leased();
  const std::vector<Uuid> sent = send(6, {.retry_backoff = kSecond, .script = {.cost = 2 * kSecond}});
  for (std::size_t i = 0; i < 3; ++i) {
    Row* row = table.find(sent[i]);
    row->lease = static_cast<std::int64_t>(i) + 1;
    row->attempts = 1;
    --row->attempts_left;
    row->attempt_at = clock.time + 20 * kSecond;
    host.ended_calls.push_back({.message = sent[i], .messages = 3, .token = row->lease});
  }
  table.last_token = 10;
  int most = 0;
  host.wants_end = [&] {
    if (clock.time < start + 6 * kSecond) most = std::max(most, static_cast<int>(table.leases.size()));
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(most, 1);
  EXPECT_EQ(backends.most_running, 3);  // afterwards together again
  EXPECT_EQ(store.companies[0], 0);
  ASSERT_EQ(table.failures.size(), 3U);
  for (const FailedAttempt& failed : table.failures) {
    EXPECT_EQ(failed.sqlstate, "57P02");
    EXPECT_EQ(failed.attempt, 1);
  }
  for (const Uuid& id : sent) EXPECT_EQ(backends.finished[id], 1);
}

TEST_F(LeasedTest, SecondCrashUnderAMessageBuriesIt) {
  add_leased();
  const Uuid id = send({});
  Row* row = table.find(id);
  row->lease = 1;
  row->attempts = 2;
  row->attempts_left = 3;
  table.failures.push_back({id, "l", "", "n", 1, "57P02", 0, true});
  host.ended_calls = {{.message = id, .token = 1}};
  run();
  ASSERT_EQ(table.dead.size(), 1U);
  EXPECT_EQ(table.dead[0].reason, "crashed");
  EXPECT_EQ(table.dead[0].attempts, 2);
  EXPECT_TRUE(backends.calls.empty());
}

TEST_F(LeasedTest, CallsWhoseProcessWasKilledAreChargedButNotDeadBeforeTheirRetriesAreUsedUp) {
  add_leased();
  const Uuid id = send({});
  Row* row = table.find(id);
  row->lease = 1;
  row->attempts = 2;
  row->attempts_left = 3;
  table.last_token = 1;
  table.failures.push_back({id, "l", "", "n", 1, "57P02", 0, true});
  host.ended_calls = {{.message = id, .loss = Loss::kKilled, .token = 1}};
  run();
  EXPECT_TRUE(table.dead.empty());
  EXPECT_EQ(table.failed(id), 2);
  EXPECT_EQ(backends.finished[id], 1);
}

TEST_F(LeasedTest, ACallWhoseSessionWasToldToGoByTheServerIsNotCharged) {
  add_leased();
  const Uuid id = send({.retries = 0, .script = {.cost = 5 * kSecond}});
  bool lost = false;
  host.wants_end = [&] {
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
  add_leased("l", Shape::kBatch);
  const std::vector<Uuid> sent = send(3, {.retries = 0});
  for (const Uuid& id : sent) {
    Row* row = table.find(id);
    row->lease = 1;
    row->attempts = 1;
    row->attempts_left = 0;
  }
  host.ended_calls = {{.message = sent[0], .token = 1}};
  table.last_token = 1;
  run();
  EXPECT_EQ(backends.calls.size(), 3U);
  EXPECT_TRUE(table.failures.empty());
  for (const Uuid& id : sent) EXPECT_EQ(backends.finished[id], 1);
}

TEST_F(LeasedTest, CrashOfACallWhoseLeaseWasNotCommittedChargesNobody) {
  add_leased();
  const Uuid id = send({.retries = 0});
  host.ended_calls = {{.message = id, .messages = 1, .token = 77}};
  run();
  EXPECT_TRUE(table.failures.empty());
  EXPECT_EQ(backends.finished[id], 1);
}

TEST_F(LeasedTest, OrphansAreGivenBackUncharged) {
  add_leased();
  const Uuid id = send({.retry_backoff = kSecond});
  const Uuid last = send({.retries = 0});
  for (const Uuid& one : {id, last}) {
    Row* row = table.find(one);
    row->lease = one == id ? 5 : 6;
    row->attempts = 1;
    --row->attempts_left;
    row->attempt_at = clock.time + 25 * kSecond;
  }
  table.last_token = 10;
  run();
  EXPECT_TRUE(table.failures.empty());
  EXPECT_TRUE(table.dead.empty());
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_EQ(backends.finished[last], 1);
  EXPECT_LE(clock.time, start + 3 * kSecond);
}

TEST_F(LeasedTest, LeaseOfAnotherWorkerIsLeftAloneThoughItIsOver) {
  add_leased();
  const Uuid id = send({});
  Row* row = table.find(id);
  row->lease = 5;
  row->attempts = 1;
  row->attempt_at = clock.time - kSecond;
  table.leases[1000] = {5, "l"};
  host.wants_end = [&] { return clock.time >= start + 60 * kSecond; };
  worker.run();
  EXPECT_TRUE(backends.calls.empty());
  EXPECT_EQ(table.find(id)->lease, 5);
  EXPECT_LT(host.waits.size(), 1000U);
}

// --- The end ---

TEST_F(LeasedTest, WorkerThatIsToEndBeginsNothingAndWaitsForWhatRuns) {
  add_leased();
  store.sessions = 2;
  const std::vector<Uuid> sent = send(3, {.script = {.cost = 40 * kSecond}});
  host.wants_end = [&] { return table.leases.size() == 2; };
  run();
  EXPECT_EQ(clock.time, start + 40 * kSecond);
  EXPECT_EQ(backends.calls.size(), 2U);
  EXPECT_EQ(table.rows.size(), 1U);
  EXPECT_EQ(store.renewals.size(), 2U);
  EXPECT_EQ(table.find(sent[2])->attempts, 0);
}

TEST_F(LeasedTest, WorkerThatIsToEndWaitsForConnectionsThatAreBeingOpened) {
  add_leased();
  send({});
  backends.connect_takes = 3 * kSecond;
  host.wants_end = [&] { return backends.opened > 0; };
  run();
  EXPECT_TRUE(backends.calls.empty());
  EXPECT_EQ(clock.time, start + 3 * kSecond);
}

TEST_F(LeasedTest, WorkerThatLeavesForBeingIdleClosesItsSessionsFirst) {
  add_leased();
  backends.connect_takes = 8 * kSecond;
  host.leave_when_idle_for = 5 * kSecond;
  send({});
  host.wants_end = [&] { return false; };
  run();
  EXPECT_TRUE(backends.sessions.empty());
}

TEST_F(LeasedTest, WorkerIsNotIdleWhileACallRuns) {
  add_leased();
  host.leave_when_idle_for = 5 * kSecond;
  const Uuid id = send({.script = {.cost = 60 * kSecond}});
  run();
  EXPECT_EQ(backends.finished[id], 1);
}

TEST_F(LeasedTest, WorkerWhoseExtensionIsGoneDoesNotWaitForWhatRuns) {
  add_leased();
  send({.script = {.cost = 3600 * kSecond}});
  host.wants_end = [&] {
    if (table.leases.size() == 1) {
      host.installed_for = 0;
      store.renew_errors.emplace_back("42P01", "relation does not exist");
    }
    return false;
  };
  worker.run();
  EXPECT_LE(clock.time, start + 20 * kSecond);
}

TEST_F(LeasedTest, WorkerThatMustNotWaitLeavesItsLeasesToTheNext) {
  add_leased();
  const Uuid id = send({.retry_backoff = kSecond, .script = {.cost = 40 * kSecond}});
  {
    LeasedSession closed(backends, table, clock);
    closed.host.add_handler("l").leased = true;
    closed.host.wants_end = [&] { return table.leases.size() == 1; };
    closed.host.may_wait_to_leave = false;
    Worker(closed.ports()).run();
  }
  EXPECT_TRUE(table.leases.empty());
  EXPECT_TRUE(backends.sessions.empty());
  run();
  EXPECT_EQ(table.failed(id), 0);
  EXPECT_EQ(backends.finished[id], 1);
}

}  // namespace
}  // namespace mq::fake
