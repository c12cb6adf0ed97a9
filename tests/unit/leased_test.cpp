// Leased handlers: sessions, leases, limits, time limits and outcomes.
#include "leased_fixture.hpp"

namespace mq::fake {
namespace {

// --- Sessions ---

TEST_F(LeasedTest, HandlesAMessageAndRemovesIt) {
  add_handler();
  const Uuid id = send({.script = {.cost = 3 * kSecond}});
  run();
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_TRUE(table.rows.empty());
  EXPECT_TRUE(table.failures.empty());
  EXPECT_EQ(worker.handled, 1U);
}

TEST_F(LeasedTest, ClaimsNothingBeforeASessionIsThere) {
  add_handler();
  const Uuid id = send({});
  backends.connect_takes = 3 * kSecond;
  worker.ends = [&] { return clock.time >= start + 2 * kSecond; };
  worker.waits_to_leave = false;
  worker.run();
  EXPECT_EQ(backends.opened, 1);
  EXPECT_EQ(table.find(id)->lease, 0);
  EXPECT_EQ(table.find(id)->attempts, 0);
  EXPECT_TRUE(backends.calls.empty());
}

TEST_F(LeasedTest, RefusedConnectionChargesNobodyWaitsLongerEachTimeAndShows) {
  add_handler();
  const Uuid id = send({.retries = 0});
  backends.refusals.assign(7, Error("28000", "rejected"));
  std::vector<Micros> tries;
  worker.ends = [&, seen = 0]() mutable {
    if (backends.opened > seen) tries.push_back((clock.time - start) / kSecond);
    seen = backends.opened;
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(tries, (std::vector<Micros>{0, 1, 3, 7, 15, 31, 61, 91}));
  ASSERT_EQ(store.connections.size(), 8U);
  EXPECT_EQ(store.connections[0]->message, "rejected");
  EXPECT_EQ(store.connections[7], std::nullopt);
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_TRUE(table.failures.empty());
  EXPECT_LT(worker.hurried, 40);
}

TEST_F(LeasedTest, ConnectionsRefusedTogetherCountOnce) {
  add_handler();
  send(4, {});
  backends.refusals.assign(4, Error("53300", "too many clients"));
  run();
  EXPECT_EQ(clock.time, start + kSecond);
}

TEST_F(LeasedTest, AfterARefusalOneConnectionIsTriedAtATimeWhateverOthersWereAccepted) {
  add_handler();
  store.sessions = 16;
  backends.most_sessions = 1;
  const std::vector<Uuid> sent = send(200, {.script = {.cost = kSecond}});
  int opened = 0;
  worker.ends = [&] {
    if (opened == 0 && clock.time - start >= 40 * kSecond) {
      opened = backends.opened;
      backends.most_sessions = 1000;
    }
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(opened, 16 + 5) << "those of the first turn, then after 1, 3, 7, 15 and 31 s";
  for (const Uuid& id : sent) EXPECT_EQ(backends.finished[id], 1);
  EXPECT_EQ(backends.most_running, 16) << "once they are accepted they grow again";
  EXPECT_EQ(store.connections.back(), std::nullopt);
  EXPECT_TRUE(table.failures.empty());
}

TEST_F(LeasedTest, SessionThatLeftMakesRoomForAnotherAtOnce) {
  add_handler();
  backends.most_sessions = 1;
  send(20, {.script = {.cost = kSecond}});  // 20 s and the time that a session lingers: the next try is at 31 s
  std::optional<Micros> sent_at;
  worker.ends = [&] {
    if (!sent_at && table.rows.empty() && backends.sessions.empty()) {
      sent_at = clock.time;
      send({});
      return false;
    }
    return table.rows.empty() && sent_at;
  };
  run();
  ASSERT_TRUE(sent_at);
  EXPECT_LT(*sent_at, start + 31 * kSecond);
  EXPECT_EQ(clock.time, *sent_at);
}

TEST_F(LeasedTest, ConnectionThatTakesTooLongIsGivenUp) {
  add_handler();
  send({});
  backends.connect_takes = 3600 * kSecond;
  run_for(15 * kSecond);
  ASSERT_GE(store.connections.size(), 1U);
  EXPECT_EQ(store.connections[0]->sqlstate, "08001");
  EXPECT_LT(worker.waits, 40);
}

TEST_F(LeasedTest, ConnectionToAnotherServerIsRefused) {
  add_handler();
  const Uuid id = send({});
  backends.another_server = true;
  run_for(5 * kSecond);
  ASSERT_TRUE(store.connections.at(0));
  EXPECT_EQ(store.connections[0]->sqlstate, "08004");
  EXPECT_EQ(backends.calls_of(id), 0);
}

TEST_F(LeasedTest, OpensNoMoreSessionsThanItMay) {
  add_handler();
  send(20, {.script = {.cost = kSecond}});
  run();
  EXPECT_EQ(backends.most_running, 4);
  EXPECT_EQ(backends.opened, 4);
  EXPECT_EQ(clock.time, start + 5 * kSecond);
  EXPECT_TRUE(worker.more_is_due);
  EXPECT_LT(worker.hurried, 100);
}

TEST_F(LeasedTest, OpensNoMoreSessionsThanThereIsWorkFor) {
  add_handler();
  send(2, {.script = {.cost = kSecond}});
  run();
  EXPECT_EQ(backends.opened, 2);
}

TEST_F(LeasedTest, IdleSessionsAreClosedAfterAWhile) {
  add_handler();
  send({});
  send({.delay = 30 * kSecond});
  std::size_t most = 0;
  worker.ends = [&] {
    if (clock.time > start + 6 * kSecond && clock.time < start + 30 * kSecond) most = backends.sessions.size();
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(most, 0U);
  EXPECT_EQ(backends.opened, 2);
}

TEST_F(LeasedTest, ProcessWithoutRoomForAnotherSessionDoesNotSpin) {
  add_handler();
  send(3, {});
  store.room = false;
  run_for(60 * kSecond);
  EXPECT_LT(worker.waits, 1000);
  EXPECT_LT(worker.hurried, 5);
}

TEST_F(LeasedTest, SessionThatCannotBeCleanedIsClosed) {
  add_handler();
  store.sessions = 1;
  backends.cleans_badly = true;
  send(3, {});
  run();
  EXPECT_EQ(backends.opened, 3);
  EXPECT_TRUE(table.rows.empty());
  EXPECT_EQ(clock.time, start);
}

TEST_F(LeasedTest, SessionThatIsCleanedWithoutEndIsGivenUp) {
  add_handler();
  store.sessions = 1;
  backends.clean_takes = 3600 * kSecond;
  send(2, {});
  run();
  EXPECT_TRUE(table.rows.empty());
  EXPECT_LE(clock.time, start + 30 * kSecond);
}

TEST_F(LeasedTest, SessionThatBreaksWhileItIsIdleIsReplaced) {
  add_handler();
  send({});
  const Uuid id = send({.delay = 2 * kSecond});
  worker.ends = [&] {
    if (clock.time < start + 2 * kSecond)
      for (auto& [backend, one] : backends.sessions)
        if (one->next_event() == kNever) one->lose(Error("57P01", "terminated"));
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_TRUE(table.failures.empty());
}

// --- Limits ---

TEST_F(LeasedTest, ChannelHasNoMoreCallsThanItsMostWorkers) {
  add_handler().max_workers = 2;
  send(6, {.script = {.cost = kSecond}});
  const Uuid other = [&] {
    add_handler("other");
    return send({.channel_name = "other", .script = {.cost = kSecond}});
  }();
  run();
  EXPECT_EQ(backends.most_running, 3);
  EXPECT_EQ(backends.finished[other], 1);
  EXPECT_LT(worker.hurried, 100);
}

TEST_F(LeasedTest, ChannelAtItsLimitElsewhereDoesNotMakeItSpin) {
  add_handler().max_workers = 1;
  table.calls[1000] = {99, "c"};
  send(3, {});
  worker.ends = [&] { return clock.time >= start + 60 * kSecond; };
  worker.run();
  EXPECT_TRUE(backends.calls.empty());
  EXPECT_LT(worker.waits, 1000);
  EXPECT_LT(worker.hurried, 5);
}

TEST_F(LeasedTest, BusySessionsDoNotMakeItSpin) {
  add_handler();
  send(50, {.script = {.cost = 1000 * kSecond}});
  run_for(900 * kSecond);
  EXPECT_LT(worker.waits, 500);
  EXPECT_LT(worker.hurried, 20);
}

TEST_F(LeasedTest, OrderedMessagesRunOneAfterAnother) {
  add_handler();
  const std::vector<Uuid> sent = send(5, {.ordered = true, .script = {.failures = 1, .cost = kSecond}});
  run();
  std::vector<Uuid> order;
  for (const auto& call : backends.calls) order.push_back(call.front());
  std::vector<Uuid> expected;
  for (const Uuid& id : sent) expected.insert(expected.end(), 2, id);
  EXPECT_EQ(order, expected);
}

// --- Leases and time limits ---

TEST_F(LeasedTest, LeaseIsRenewedWhenHalfOfItIsOver) {
  add_handler();
  worker.interval = 7 * kSecond;
  send({.script = {.cost = 50 * kSecond}});
  run();
  EXPECT_EQ(store.renewals, (std::vector<Micros>{start + 15 * kSecond, start + 30 * kSecond, start + 45 * kSecond}));
  EXPECT_TRUE(table.failures.empty());
}

TEST_F(LeasedTest, HandlerIsCancelledAtItsTimeLimit) {
  add_handler().timeout = 2 * kSecond;
  const Uuid id = send({.retries = 0, .script = {.cost = 60 * kSecond}});
  run();
  EXPECT_EQ(clock.time, start + 2 * kSecond);
  EXPECT_EQ(backends.cancels, 1);
  EXPECT_EQ(backends.terminations, 0);
  ASSERT_EQ(table.failures.size(), 1U);
  EXPECT_EQ(table.failures[0].sqlstate, "57014");
  EXPECT_EQ(table.failures[0].duration, 2 * kSecond);
  EXPECT_EQ(table.died(id), 1);
}

TEST_F(LeasedTest, HandlerThatDoesNotHeedTheCancelIsTerminated) {
  add_handler().timeout = 2 * kSecond;
  const Uuid id = send({.retries = 0, .script = {.cost = 60 * kSecond, .stubborn = true}});
  run();
  EXPECT_EQ(clock.time, start + 4 * kSecond);
  EXPECT_EQ(backends.terminations, 1);
  ASSERT_EQ(table.failures.size(), 1U);
  EXPECT_EQ(table.failures[0].sqlstate, "57014");
  EXPECT_EQ(table.died(id), 1);
}

TEST_F(LeasedTest, HandlerThatSucceedsAfterItsTimeLimitHasSucceeded) {
  add_handler().timeout = 2 * kSecond;
  const Uuid id = send({.script = {.cost = 3 * kSecond, .stubborn = true}});
  run();
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_TRUE(table.failures.empty());
}

TEST_F(LeasedTest, HandlerThatFailsOnItsOwnAfterTheCancelKeepsItsError) {
  add_handler().timeout = 2 * kSecond;
  send({.retries = 0, .script = {.failures = 1, .cost = 3 * kSecond, .stubborn = true, .sqlstate = "23505"}});
  run();
  ASSERT_EQ(table.failures.size(), 1U);
  EXPECT_EQ(table.failures[0].sqlstate, "23505");
}

TEST_F(LeasedTest, ClockThatIsSetChangesNoTimeLimit) {
  add_handler().timeout = 10 * kSecond;
  for (const Micros by : {3600 * kSecond, -3600 * kSecond}) {
    const Uuid good = send({.script = {.cost = 5 * kSecond}});
    const Uuid bad = send({.retries = 0, .script = {.cost = 3600 * kSecond}});
    const Micros began = clock.steady();
    bool changed = false;
    worker.ends = [&] {
      if (!changed && !table.calls.empty()) clock.set(by), changed = true;
      return table.rows.empty();
    };
    run();
    EXPECT_TRUE(changed);
    EXPECT_EQ(backends.finished[good], 1);
    EXPECT_EQ(table.failed(good), 0);
    EXPECT_EQ(table.died(bad), 1);
    EXPECT_EQ(clock.steady() - began, 10 * kSecond);
  }
}

TEST_F(LeasedTest, ClockThatIsSetBackDoesNotProlongTheWaitAfterARefusal) {
  add_handler();
  backends.refusals.assign(1, Error("28000", "rejected"));
  const Uuid id = send({.delay = -2 * 3600 * kSecond});
  worker.ends = [&, changed = false]() mutable {
    if (!changed && !store.connections.empty()) clock.set(-3600 * kSecond), changed = true;
    return table.rows.empty();
  };
  run();
  EXPECT_EQ(backends.finished[id], 1);
  EXPECT_EQ(clock.steady() - start, kSecond);
}

// --- Outcomes ---

TEST_F(LeasedTest, FailureIsTriedAgainAfterItsBackoffAndChargedOnce) {
  add_handler().max_backoff = 3600 * kSecond;
  const Uuid id = send({.retries = 3, .retry_backoff = 10 * kSecond, .script = {.failures = 2}});
  run();
  EXPECT_EQ(backends.calls_of(id), 3);
  ASSERT_EQ(table.failures.size(), 2U);
  EXPECT_EQ(table.failures[0].attempt, 1);
  EXPECT_EQ(table.failures[1].attempt, 2);
  EXPECT_GE(clock.time, start + 30 * kSecond);
  EXPECT_LE(clock.time, start + 34 * kSecond);
  EXPECT_TRUE(table.dead.empty());
}

TEST_F(LeasedTest, LastAttemptThatFailsIsBuried) {
  add_handler();
  const Uuid id = send({.retries = 2, .script = {.failures = kAlways}});
  run();
  EXPECT_EQ(backends.calls_of(id), 3);
  EXPECT_EQ(table.failed(id), 3);
  ASSERT_EQ(table.dead.size(), 1U);
  EXPECT_EQ(table.dead[0].reason, "exhausted");
  EXPECT_EQ(table.dead[0].attempts, 3);
}

TEST_F(LeasedTest, DeadMessageBlocksItsChannelIfItsHandlerSaysSo) {
  add_handler().block_on_dead = true;
  const std::vector<Uuid> sent = send(2, {.ordered = true, .retries = 0, .script = {.failures = kAlways}});
  run_for(kSecond);
  EXPECT_TRUE(table.find(sent[0])->blocks);
  EXPECT_EQ(backends.calls_of(sent[1]), 0);
}

TEST_F(LeasedTest, MessageThatNoHandlerTakesWaitsUncharged) {
  Handler& handler = add_handler();
  handler.message_name = "x";
  const Uuid id = send({.name = "y", .retries = 0});
  run();
  EXPECT_EQ(table.failed(id), 0);
  ASSERT_NE(table.find(id), nullptr);
  EXPECT_EQ(table.find(id)->attempt_at, kNever);
  EXPECT_EQ(table.find(id)->attempts, 0);
  EXPECT_TRUE(backends.calls.empty());
}

TEST_F(LeasedTest, ConflictIsTriedAgainAtOnceUncharged) {
  add_handler();
  const Uuid id = send({.retries = 0, .script = {.conflicts = 10}});
  run();
  EXPECT_EQ(backends.calls_of(id), 11);
  EXPECT_EQ(clock.time, start);
  EXPECT_TRUE(table.failures.empty());
  EXPECT_EQ(backends.finished[id], 1);
}

TEST_F(LeasedTest, ConflictsInARowAreChargedInTheEnd) {
  add_handler();
  const Uuid id = send({.retries = 1, .script = {.conflicts = kAlways}});
  run();
  EXPECT_EQ(backends.calls_of(id), 22);
  EXPECT_EQ(table.failed(id), 2);
  EXPECT_EQ(table.died(id), 1);
}

TEST_F(LeasedTest, SnoozeOfAHandlerIsHeeded) {
  add_handler();
  const Uuid id = send({.retries = 0, .script = {.snoozes = 3}});
  run();
  EXPECT_EQ(backends.calls_of(id), 4);
  EXPECT_EQ(clock.time, start + 3 * kSnooze);
  EXPECT_TRUE(table.failures.empty());
}

TEST_F(LeasedTest, BatchHandlerGetsSeveralAtOnce) {
  add_handler("c", Shape::kBatch);
  send(12, {});
  run();
  EXPECT_EQ(table.rows.size(), 0U);
  for (const auto& call : backends.calls) EXPECT_LE(call.size(), 5U);
  EXPECT_LE(backends.calls.size(), 5U);
}

TEST_F(LeasedTest, WorkerThatDrainsBeginsNothing) {
  add_handler();
  const Uuid id = send({});
  worker.turn(true);
  EXPECT_EQ(backends.opened, 0);
  EXPECT_EQ(table.find(id)->attempts, 0);
}

TEST_F(LeasedTest, BatchThatFailsIsCalledOneByOneAndChargesWhoseFaultItIs) {
  add_handler("c", Shape::kBatch);
  store.sessions = 1;
  const Uuid bad = send({.retries = 0, .script = {.failures = kAlways}});
  const std::vector<Uuid> good = send(4, {.retries = 0});
  run();
  EXPECT_EQ(backends.calls.front().size(), 5U);
  EXPECT_EQ(backends.calls.size(), 6U);
  for (const Uuid& id : good) EXPECT_EQ(backends.finished[id], 1);
  EXPECT_EQ(table.died(bad), 1);
  EXPECT_EQ(table.failures.size(), 1U);
}

TEST_F(LeasedTest, ExpiredMessageIsBuriedAndNotRun) {
  add_handler();
  store.sessions = 1;
  send({.script = {.cost = 10 * kSecond}});
  const Uuid id = send({.expires = 5 * kSecond});
  run();
  EXPECT_EQ(backends.calls_of(id), 0);
  ASSERT_EQ(table.dead.size(), 1U);
  EXPECT_EQ(table.dead[0].reason, "expired");
}

}  // namespace
}  // namespace mq::fake
