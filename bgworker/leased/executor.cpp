#include "leased/executor.hpp"

#include <algorithm>
#include <utility>

#include "handlers/policy.hpp"
#include "pg/crash_point.hpp"
#include "pg/format.hpp"

namespace mq {

namespace {

constexpr Micros kConnectTimeout = 10 * kSecond;
constexpr Micros kCleanTimeout = 10 * kSecond;
constexpr Micros kFirstRefusal = kSecond;  // the wait after a refused connection; then doubled
constexpr Micros kLastRefusal = 30 * kSecond;
constexpr Micros kLeastGrace = kSecond;  // between the time limit and termination
constexpr Micros kMostGrace = 30 * kSecond;
constexpr Micros kSettleAgain = kSecond / 10;  // after another session had locked a message
// The wait before a call is settled whose connection was lost. If the server crashed, this worker
// is ended meanwhile.
constexpr Micros kAfterLostConnection = 5 * kSecond;
constexpr std::size_t kMostRemembered = 10'000;  // messages in single_, and in conflicts_
constexpr std::size_t kOrphans = 2000;           // leases that release_orphans() looks at
constexpr int kTrials = 3;                       // of settling a call that failed

}  // namespace

LeasedHandlers::Turn LeasedHandlers::turn(const Registry& registry, const Scope& scope) {
  Turn turn;
  failure_.reset();
  const Micros now = ports_.clock.steady();
  stopping_ = has_sessions() && ports_.store.is_stopping();
  const bool drain = scope.drain || stopping_;
  for (const auto& run : runs_) {
    turn.moved = poll(*run, now) || turn.moved;
    stop(*run, now);
  }
  renew(now);
  for (const auto& run : runs_) {
    if (run->state != Run::kEnded || !try_to_settle(*run, now)) continue;
    turn.handled += run->error ? 0 : run->messages.size();
    turn.moved = true;
  }
  turn.failure = failure_;
  bool left = false;
  std::erase_if(runs_, [&](const auto& run) {
    const bool idle = run->state == Run::kIdle && (drain || now - run->since > kSessionLingers);
    left = left || idle;
    return run->state == Run::kBroken || idle;
  });
  if (left) refused_until_ = std::min(refused_until_, now);  // its connection is free
  ports_.store.note_connecting(static_cast<int>(count(Run::kConnecting)));
  if (drain) {
    if (no_room_ && runs_.empty()) told_of_room(std::nullopt);  // this worker wants no session
    return turn;
  }
  if (begin(registry, scope, turn)) turn.moved = true;
  open_sessions(registry, scope, turn, now);
  ports_.store.note_connecting(static_cast<int>(count(Run::kConnecting)));
  return turn;
}

void LeasedHandlers::enter_state(Run& run, Run::State state, Micros now) {
  run.state = state;
  run.since = now;
}

// True if the state changed.
bool LeasedHandlers::poll(Run& run, Micros now) {
  if (run.state == Run::kEnded || run.state == Run::kBroken) return false;
  const HandlerSession::State state = run.session->poll();
  const Run::State before = run.state;
  const bool broken = state == HandlerSession::State::kBroken;
  const bool idle = state == HandlerSession::State::kIdle;
  switch (run.state) {
    case Run::kConnecting:
      if (idle || broken || now - run.since > kConnectTimeout) connection_ended(run, now);
      break;
    case Run::kRunning:
      if (idle || broken) end(run, broken, now);
      break;
    case Run::kCleaning:
      if (broken || (idle && run.session->error()) || now - run.since > kCleanTimeout)
        enter_state(run, Run::kBroken, now);
      if (idle && !run.session->error()) enter_state(run, Run::kIdle, now);
      break;
    default:
      if (broken) enter_state(run, Run::kBroken, now);
  }
  return run.state != before;
}

void LeasedHandlers::connection_ended(Run& run, Micros now) {
  std::optional<Error> refusal = run.session->error();
  if (run.session->poll() == HandlerSession::State::kConnecting) {
    refusal = Error("08001", "connection took too long");
  } else if (!refusal && !ports_.store.is_ours(run.session->backend())) {
    refusal = Error("08004", "mq.leased_conninfo leads to another server");
  }
  if (!refusal) {
    // A connection that began before a refusal does not show that the next ones will succeed.
    if (refusals_ == 0 || run.since > refused_at_) {
      ports_.store.note_connection(std::nullopt);
      refusals_ = 0;
      at_once_ = std::min(kMostAtOnce, 2 * at_once_);
    }
    enter_state(run, Run::kIdle, now);
    return;
  }
  ports_.store.note_connection(refusal);
  refused_at_ = now;
  at_once_ = 1;
  no_room_ = no_room_ || count(Run::kIdle) + count(Run::kRunning) > 0;
  if (now >= refused_until_) {  // connections that were refused together count once
    refused_until_ = now + std::min(kLastRefusal, kFirstRefusal << std::min(refusals_, 10));
    ++refusals_;
  }
  enter_state(run, Run::kBroken, now);
}

void LeasedHandlers::stop(Run& run, Micros now) {
  if (run.state == Run::kRunning && !run.cancelled && ports_.store.is_cancelled(run.number)) {
    run.cancelled = true;
    run.stop = Run::kCancelled;
    run.stop_at = now + std::clamp(run.handler.timeout, kLeastGrace, kMostGrace);
    ports_.store.cancel(run.session->backend());  // mq_cancel has done so, perhaps before the call began
  }
  if (run.state != Run::kRunning || run.stop_at == 0 || now < run.stop_at) return;
  if (run.stop == Run::kNot) {
    run.stop = Run::kCancelled;
    run.stop_at = now + std::clamp(run.handler.timeout, kLeastGrace, kMostGrace);
    ports_.store.cancel(run.session->backend());
  } else {
    run.stop = Run::kTerminated;
    run.stop_at = now + kMostGrace;  // then it is terminated again
    ports_.store.terminate(run.session->backend());
  }
}

void LeasedHandlers::renew(Micros now) {
  std::vector<std::int64_t> tokens;
  for (const auto& run : runs_) {
    if (run->number < 0 || now < run->renew_at) continue;
    tokens.push_back(run->token);
    run->renew_at = now + kLease / 2;
  }
  if (tokens.empty()) return;
  ports_.transaction.begin();
  ports_.store.renew(tokens, ports_.clock.now() + kLease);
  ports_.transaction.commit();
}

void LeasedHandlers::end(Run& run, bool broken, Micros now) {
  run.error = run.session->error();
  run.duration = now - run.since;
  if (!run.error) run.result = run.session->result();
  const bool terminated = run.stop == Run::kTerminated && broken;
  // After a cancel, an error other than 57014 is the handler's own, and is kept.
  if (run.error && (terminated || (run.stop != Run::kNot && run.error->sqlstate == "57014"))) {
    const std::string context = run.error->context;
    run.error = Error("57014", mq::format("handler timed out after {} ms", run.handler.timeout / 1000),
                      terminated ? "It did not heed the cancel, and its session was terminated." : "");
    run.error->context = context;
  }
  // A session that ends without an error message has probably crashed, and the server with it.
  // After the restart a worker charges that, so this one waits before it settles.
  run.settle_at = broken && run.error && run.error->sqlstate == "08006" ? now + kAfterLostConnection : now;
  // When the server stops, the postmaster's signal may reach the session before this worker.
  run.give_back = broken && !terminated && ports_.store.was_told(run.number);
  enter_state(run, Run::kEnded, now);
  MQ_CRASH_POINT(lease_ended);
}

// In a worker, an error of settling one call does not stop the others.
bool LeasedHandlers::try_to_settle(Run& run, Micros now) {
  try {
    return settle(run, now);
  } catch (const Error& error) {
    if (!ports_.store.is_background()) throw;
    ports_.transaction.rollback();
    unsettled(run, error, now);
    return false;
  }
}

// Settling is tried again after the backoff. For a call that succeeded this goes on until it is
// settled. A failed call loses only its charge if settling is given up. So after kTrials failures
// its messages are made due again in kPutOff, uncharged.
void LeasedHandlers::unsettled(Run& run, const Error& error, Micros now) {
  if (ports_.store.was_held(error)) {
    run.settle_at = now + kSettleAgain;
    return;
  }
  ports_.store.warn(error);
  failure_ = error;
  run.trouble.failed(now);
  run.settle_at = now + run.trouble.left(now);
  if (!run.error || run.trouble.failures() < kTrials) return;
  try {
    ports_.transaction.begin();
    Batch batch;
    Settlement settlement;
    const Micros until = ports_.clock.now() + kPutOff;
    if (ports_.store.works() && ports_.store.reclaim(run.token, batch)) {
      for (const Claimed& message : batch) settlement.snoozes.push_back({&message, until});
      ports_.store.settle(settlement);
    }
    for (const Claimed& message : batch) ports_.store.put_off(message.id, message.channel_name, error, until);
    ports_.transaction.commit();
  } catch (const Error& again) {
    ports_.transaction.rollback();
    ports_.store.warn(again);
    return;
  }
  ports_.store.leave(run.number);
  run.number = -1;
  enter_state(run, Run::kBroken, now);
}

// Where messages are not handled any more nothing is settled: rows of a restore may have the token,
// and the restore may have undone what the handler did. So the lease becomes an orphan.
bool LeasedHandlers::settle(Run& run, Micros now) {
  if (now < run.settle_at) return false;
  ports_.transaction.begin();
  Batch batch;
  if (!ports_.store.works()) {
    ports_.transaction.commit();
    run.messages.clear();
    finish(run, now);
    return true;
  }
  if (!ports_.store.reclaim(run.token, batch)) {
    ports_.transaction.commit();
    run.settle_at = now + kSettleAgain;  // another session has locked a message of the call
    return false;
  }
  MQ_CRASH_POINT(lease_reclaimed);
  std::vector<const void*> results;
  if (!run.error && run.result) try {
      results = ports_.store.results_of(*run.result, run.handler.shape, run.messages.size());
    } catch (const Error& error) {
      run.error = error;
    }
  const auto result_of = [&](const Claimed& message) -> const void* {
    const auto found = std::find(run.messages.begin(), run.messages.end(), message.id);
    return results.empty() || found == run.messages.end()
               ? nullptr
               : results[static_cast<std::size_t>(found - run.messages.begin())];
  };
  Settlement settlement;
  if (run.give_back) {
    for (const Claimed& message : batch) settlement.snoozes.push_back({&message, ports_.clock.now()});
  } else if (run.error) {
    settle_failed(run, batch, ports_.clock.now(), settlement);
  } else {
    for (const Claimed& message : batch) {
      settlement.removed.push_back(&message);
      settlement.handled.push_back({&message, run.waited, run.duration / static_cast<Micros>(run.messages.size()),
                                    keep_of(message, run.handler), run.started, run.started + run.duration,
                                    result_of(message)});
    }
    if (!conflicts_.empty())
      for (const Claimed& message : batch) conflicts_.erase(message.id);
  }
  ports_.store.settle(settlement);
  MQ_CRASH_POINT(lease_settled);
  ports_.transaction.commit();
  MQ_CRASH_POINT(lease_done);
  finish(run, now);
  return true;
}

// The call is over; its session may have another one.
void LeasedHandlers::finish(Run& run, Micros now) {
  ports_.store.leave(run.number);
  run.number = -1;
  MQ_CRASH_POINT(lease_left);
  if (exclusive_ > 0) run_exclusive(exclusive_ - 1);
  if (run.session->poll() == HandlerSession::State::kIdle) {
    run.session->clean();
    enter_state(run, Run::kCleaning, now);
  } else {
    enter_state(run, Run::kBroken, now);
  }
}

// Of several messages it is unknown which one made the call fail: none is charged, and each is
// called again by itself.
void LeasedHandlers::settle_failed(const Run& run, const Batch& batch, Micros now, Settlement& settlement) {
  if (conflicts_.size() > kMostRemembered) conflicts_.clear();
  if (single_.size() > kMostRemembered) single_.clear();
  for (const Claimed& message : batch) {
    if (run.messages.size() > 1) {
      single_.insert(message.id);
      settlement.snoozes.push_back({&message, now});
    } else if (run.error->is_conflict() && ++conflicts_[message.id] <= kMostConflicts) {
      settlement.snoozes.push_back({&message, now});
    } else {
      conflicts_.erase(message.id);
      settle_failure({&message, *run.error, run.duration}, &run.handler, now, ports_.clock.random(), settlement);
    }
  }
}

std::size_t LeasedHandlers::count(Run::State state) const {
  return static_cast<std::size_t>(
      std::count_if(runs_.begin(), runs_.end(), [&](const auto& run) { return run->state == state; }));
}

std::size_t LeasedHandlers::most_sessions() {
  return exclusive_ > 0 ? 1 : static_cast<std::size_t>(std::max(1, ports_.store.most_sessions()));
}

bool LeasedHandlers::busy() const {
  return std::any_of(runs_.begin(), runs_.end(), [](const auto& run) { return run->number >= 0; });
}

void LeasedHandlers::run_exclusive(int calls) {
  exclusive_ = calls;
  ports_.store.note_exclusive(exclusive_ > 0);
}

bool LeasedHandlers::can_begin() const {
  if (stopping_ || (exclusive_ > 0 && busy())) return false;
  if (count(Run::kIdle) > 0) return true;
  // When one of these becomes idle, its socket causes a turn.
  if (count(Run::kConnecting) + count(Run::kCleaning) > 0) return false;
  return ports_.clock.steady() >= refused_until_ &&
         runs_.size() < static_cast<std::size_t>(ports_.store.most_sessions());
}

bool LeasedHandlers::charge_crash(const AbortedCall& aborted_call, int crashes, const Registry& registry) {
  Batch batch;
  if (!ports_.store.reclaim(aborted_call.token, batch)) return false;
  if (batch.empty()) return true;
  run_exclusive(std::max(exclusive_, aborted_call.messages));
  Settlement settlement;
  const Micros now = ports_.clock.now();
  for (const Claimed& message : batch) {
    const Channel* channel = registry.find(message.channel_name);
    const Handler* handler = channel != nullptr ? channel->find(message.name) : nullptr;
    if (batch.size() > 1) {
      single_.insert(message.id);
      settlement.snoozes.push_back({&message, now});
    } else {
      settle_aborted_call(message, aborted_call, crashes, handler, now, ports_.clock.random(), settlement);
    }
  }
  ports_.store.settle(settlement);
  return true;
}

void LeasedHandlers::release_orphans(const Registry& registry) {
  for (const std::int64_t token : ports_.store.orphans(kOrphans)) {
    Batch batch;
    (void)ports_.store.reclaim(token, batch);
    Settlement settlement;
    for (const Claimed& message : batch)
      if (registry.find(message.channel_name) != nullptr)  // else a worker of another role does it
        settlement.snoozes.push_back({&message, ports_.clock.now()});
    ports_.store.settle(settlement);
  }
}

std::optional<Micros> LeasedHandlers::next_turn() const {
  std::optional<Micros> next;
  const auto sooner = [&](Micros at) {
    if (!next || at < *next) next = at;
  };
  for (const auto& run : runs_) {
    if (run->number >= 0) sooner(run->renew_at);
    if (run->state == Run::kRunning && run->stop_at != 0) sooner(run->stop_at);
    if (run->state == Run::kEnded) sooner(run->settle_at);
    if (run->state == Run::kConnecting) sooner(run->since + kConnectTimeout + 1);
    if (run->state == Run::kCleaning) sooner(run->since + kCleanTimeout + 1);
    if (run->state == Run::kIdle) sooner(run->since + kSessionLingers + 1);
  }
  const Micros now = ports_.clock.steady();
  if (refused_until_ > now) sooner(refused_until_);
  if (next) next = std::max<Micros>(0, *next - now);
  return next;
}

std::vector<Socket> LeasedHandlers::sockets() const {
  std::vector<Socket> sockets;
  for (const auto& run : runs_) {
    if (run->state == Run::kEnded || run->state == Run::kBroken) continue;
    const Socket socket = run->session->socket();
    if (socket.descriptor >= 0) sockets.push_back(socket);  // else the next turn finds it broken
  }
  return sockets;
}

}  // namespace mq
