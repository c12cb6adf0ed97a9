// How leased calls begin. This is the part of LeasedHandlers (executor.hpp) that turn() calls last:
//   1. begin() claims messages for the idle sessions, leases them, commits, and starts the calls.
//   2. open_sessions() opens sessions for what is still due. A later turn finds them idle.
#include <algorithm>
#include <map>
#include <utility>

#include "handlers/policy.hpp"
#include "leased/executor.hpp"
#include "pg/crash_point.hpp"
#include "queue/undeliverable.hpp"

namespace mq {

namespace {

constexpr Micros kRoomWait = 2 * kSecond;  // before the server is asked for room again

}  // namespace

// The leased channels that may begin calls in `idle` sessions, with how many messages for each.
std::vector<Source> LeasedHandlers::sources(const Registry& registry, const Scope& scope, std::size_t idle) {
  std::vector<Source> sources;
  for (const auto& [name, channel] : registry.channels()) {
    if (!channel.leased() || !channel.disabled.empty()) continue;
    if (scope.only != nullptr && std::find(scope.only->begin(), scope.only->end(), name) == scope.only->end()) continue;
    int room = static_cast<int>(idle);
    if (const int most = channel.max_workers(); most > 0) room = std::min(room, most - ports_.store.running_on(name));
    const auto most = static_cast<int>(std::min<std::int64_t>(scope.most, std::int64_t{room} * channel.batch_size()));
    if (most > 0) sources.push_back({name, most, channel.priority()});
  }
  return sources;
}

// Makes calls of the messages: one call a message, or one for up to batch_size messages of a batch
// handler. A message that no handler takes is settled as unhandled.
std::vector<LeasedHandlers::Call> LeasedHandlers::calls_of(const Registry& registry, const Batch& messages,
                                                           Settlement& settlement) {
  std::vector<Call> calls;
  std::map<const Handler*, std::size_t> open;  // the call of a batch handler that has room
  for (const Claimed& message : messages) {
    const Channel* channel = registry.find(message.channel_name);
    const Handler* handler = channel != nullptr ? channel->find(message.name) : nullptr;
    if (handler == nullptr) {
      settlement.unhandled.push_back(&message);
      continue;
    }
    const bool exclusive = handler->shape != Shape::kBatch || single_.contains(message.id);
    const auto found = exclusive ? open.end() : open.find(handler);
    if (found != open.end()) {
      Call& call = calls[found->second];
      call.messages.push_back(&message);
      if (call.messages.size() >= static_cast<std::size_t>(handler->batch_size)) open.erase(found);
      continue;
    }
    if (!exclusive && handler->batch_size > 1) open[handler] = calls.size();
    calls.push_back({handler, {&message}});
  }
  return calls;
}

// Leases due messages to idle sessions. True: a call began, or messages were settled or put off, also by limits.
bool LeasedHandlers::begin(const Registry& registry, const Scope& scope, Turn& turn) {
  std::vector<Run*> idle;
  for (const auto& run : runs_)
    if (run->state == Run::kIdle) idle.push_back(run.get());
  if (exclusive_ > 0) idle.resize(std::min<std::size_t>(idle.size(), busy() ? 0 : 1));
  if (idle.empty()) return false;
  const std::vector<Source> from = sources(registry, scope, idle.size());
  int limit = 0;
  for (const Source& source : from) limit = std::max(limit, source.most);
  if (limit == 0) return false;

  ports_.transaction.begin();
  const Micros now = ports_.clock.now();
  // Messages may have been restored since the worker read its registry.
  const Claim claim = ports_.store.works() ? ports_.store.claim(from, limit) : Claim();
  if (claim.messages.empty() && claim.undeliverable.empty()) {
    ports_.transaction.commit();
    return claim.put_off > 0;
  }
  std::vector<std::pair<Run*, Call>> begun;
  std::vector<LeasedCall> statements;
  std::optional<Unsent> unsent;
  std::vector<Uuid> undeliverable;
  std::optional<Error> trouble;
  std::size_t left = 0;
  bool settled = false;
  bool held = false;
  try {
    Settlement settlement;
    settle_undeliverable(claim.undeliverable, now, settlement);
    std::vector<Call> calls = calls_of(registry, claim.messages, settlement);
    MQ_CRASH_POINT(lease_claimed);
    settled = !claim.undeliverable.empty() || !settlement.unhandled.empty();
    try {
      ports_.store.settle(settlement);
    } catch (const Error& error) {
      trouble = error;
      for (const DeadLetter& dead_letter : settlement.dead_letters) undeliverable.push_back(dead_letter.message->id);
      for (const Snooze& snooze : settlement.snoozes) undeliverable.push_back(snooze.message->id);
      for (const Retry& retry : settlement.retries) undeliverable.push_back(retry.message->id);
      for (const Claimed* message : settlement.removed) undeliverable.push_back(message->id);
      for (const Claimed* message : settlement.unhandled) undeliverable.push_back(message->id);
      throw;
    }
    const std::size_t running = runs_.size() - count(Run::kIdle) - count(Run::kConnecting) - count(Run::kCleaning);
    const auto concurrency = static_cast<int>(running + std::min(idle.size(), calls.size()) - 1);
    for (Call& call : calls) {
      if (begun.size() == idle.size()) {
        ++left;
        continue;
      }
      Run& run = *idle[begun.size()];
      run.token = ports_.store.new_token();
      run.number =
          ports_.store.enter({run.token, run.session->backend(), *call.handler, *call.messages.front(), concurrency});
      if (run.number < 0) continue;
      try {
        call.messages.resize(ports_.store.may_begin(call.messages));
      } catch (...) {
        ports_.store.leave(run.number);
        run.number = -1;
        throw;
      }
      if (call.messages.empty()) {
        ports_.store.leave(run.number);
        run.number = -1;
        continue;
      }
      begun.emplace_back(&run, call);
      MQ_CRASH_POINT(lease_entered);
      try {
        ports_.store.lease(call.messages, run.token, now + ports_.store.lease_length(*call.handler));
      } catch (const Error& error) {
        held = ports_.store.was_held(error);  // mq_cancel is about one of them
        throw;
      }
      MQ_CRASH_POINT(lease_written);
      statements.push_back(statement_of(call, unsent));
    }
    ports_.transaction.commit();
  } catch (...) {
    for (auto& [run, call] : begun) {
      ports_.store.leave(run->number);
      run->number = -1;
    }
    if (trouble && ports_.store.is_background()) {
      ports_.transaction.rollback();
      put_off(undeliverable, *trouble);
      return true;
    }
    if (held) {
      ports_.transaction.rollback();
      return true;
    }
    if (!unsent) throw;
    ports_.transaction.rollback();
    fail(*unsent);
    return true;
  }
  MQ_CRASH_POINT_IF(!begun.empty(), lease_committed);
  const Micros started = ports_.clock.steady();
  for (std::size_t i = 0; i < begun.size(); ++i) {
    auto& [run, call] = begun[i];
    run->messages.clear();
    for (const Claimed* message : call.messages) run->messages.push_back(message->id);
    run->started = now;
    run->result.reset();
    run->handler = *call.handler;
    run->waited = std::max<Micros>(0, now - call.messages.front()->due());
    run->renew_at = started + kLease / 2;
    run->stop = Run::kNot;
    run->stop_at = run->handler.timeout > 0 ? started + run->handler.timeout : 0;
    run->error.reset();
    run->cancelled = false;
    enter_state(*run, Run::kRunning, started);
    run->session->run(statements[i]);
    MQ_CRASH_POINT(lease_running);
  }
  turn.more_is_due = exclusive_ == 0 && (claim.more_is_due || left > 0) && runs_.size() >= most_sessions();
  return !begun.empty() || settled;
}

// Makes messages that cannot be settled due again after kPutOff, so that they do not stop others.
void LeasedHandlers::put_off(const std::vector<Uuid>& ids, const Error& error) {
  ports_.store.warn(error);
  ports_.transaction.begin();
  Batch batch;
  if (ports_.store.works()) ports_.store.find(ids, batch);
  const Micros until = ports_.clock.now() + kPutOff;
  Settlement settlement;
  for (const Claimed& message : batch)
    if (!message.held) settlement.snoozes.push_back({&message, until});
  ports_.store.settle(settlement);
  for (const Snooze& snooze : settlement.snoozes)
    ports_.store.put_off(snooze.message->id, snooze.message->channel_name, error, until);
  ports_.transaction.commit();
}

LeasedCall LeasedHandlers::statement_of(const Call& call, std::optional<Unsent>& unsent) {
  try {
    return ports_.store.call_of(*call.handler, call.messages);
  } catch (const Error& error) {
    unsent = Unsent{{}, *call.handler, error};
    for (const Claimed* message : call.messages) unsent->messages.emplace_back(message->id, message->attempts);
    throw;
  }
}

// Charges a call that could not be made into a statement, since its messages are too large, say.
// The caller's rollback has undone the other leases of the claim.
void LeasedHandlers::fail(const Unsent& unsent) {
  const Micros now = ports_.clock.now();
  ports_.transaction.begin();
  Batch batch;
  std::vector<Uuid> ids;
  for (const auto& [id, attempts] : unsent.messages) ids.push_back(id);
  if (ports_.store.works()) ports_.store.find(ids, batch);
  // The rollback unlocked the messages. One that another session has tried since, or has leased
  // now, is not charged.
  std::erase_if(batch, [&](const Claimed& message) {
    return message.held || message.attempt_at > now ||
           std::find(unsent.messages.begin(), unsent.messages.end(), std::pair(message.id, message.attempts)) ==
               unsent.messages.end();
  });
  Run run;
  run.messages = ids;
  run.handler = unsent.handler;
  run.error = unsent.error;
  Settlement settlement;
  settle_failed(run, batch, now, settlement);
  ports_.store.settle(settlement);
  ports_.transaction.commit();
}

void LeasedHandlers::told_of_room(const std::optional<Error>& refusal) {
  no_room_ = refusal.has_value();
  ports_.store.note_connection(refusal);
}

// Opens as many sessions as the due messages need and do not have.
void LeasedHandlers::open_sessions(const Registry& registry, const Scope& scope, Turn& turn, Micros now) {
  const std::size_t most = most_sessions();
  // begin() left a session idle, so no other one is wanted.
  if (count(Run::kIdle) > 0 && no_room_) told_of_room(std::nullopt);
  if (now < refused_until_ || count(Run::kIdle) > 0 || stopping_) return;
  const auto room = static_cast<int>(most - std::min(most, runs_.size()));
  const std::vector<Source> from = sources(registry, scope, std::max<std::size_t>(1, static_cast<std::size_t>(room)));
  if (from.empty()) return;
  int wanted = 0;
  ports_.transaction.begin();
  for (const Source& source : from) {
    const int batch = registry.find(source.channel_name)->batch_size();
    wanted += (ports_.store.due(source.channel_name, ports_.clock.now(), source.most) + batch - 1) / batch;
  }
  if (wanted == 0 && no_room_) told_of_room(std::nullopt);
  wanted -= static_cast<int>(count(Run::kConnecting) + count(Run::kCleaning));
  if (wanted > room && exclusive_ == 0) turn.more_is_due = true;
  const std::size_t connecting = count(Run::kConnecting);
  const auto tried = static_cast<int>(at_once_ - std::min(at_once_, connecting));
  for (int i = std::min({wanted, room, tried}); i > 0; --i) {
    std::unique_ptr<HandlerSession> session;
    try {
      session = ports_.store.open(static_cast<int>(count(Run::kConnecting)));
    } catch (const Error& error) {
      if (error.sqlstate != "53300") throw;
      // The sessions that there are go on. Nothing was claimed, so no message is charged.
      told_of_room(error);
      refused_until_ = now + kRoomWait;
      break;
    }
    if (!session) break;
    auto run = std::make_unique<Run>();
    run->session = std::move(session);
    enter_state(*run, Run::kConnecting, now);
    runs_.push_back(std::move(run));
    turn.moved = true;  // a local connection often succeeds at once
  }
  ports_.transaction.commit();
}

}  // namespace mq
