// How leased calls begin: sessions first, then the claim, and its commit before anything runs.
#include <algorithm>
#include <map>
#include <utility>

#include "leased.hpp"
#include "policy.hpp"

namespace mq {

namespace {

constexpr Micros kRoomWait = 2 * kSecond;  // before the server is asked for room again

}  // namespace

// The leased channels that may begin something, and how many messages each.
std::vector<Source> LeasedHandlers::sources(const Registry& registry, const Scope& scope, std::size_t idle) {
  std::vector<Source> sources;
  for (const auto& [name, channel] : registry.channels()) {
    if (!channel.leased() || !channel.parked.empty()) continue;
    if (scope.only != nullptr && std::find(scope.only->begin(), scope.only->end(), name) == scope.only->end()) continue;
    int room = static_cast<int>(idle);
    if (const int most = channel.max_workers(); most > 0) room = std::min(room, most - ports_.store.running_on(name));
    const auto most = static_cast<int>(std::min<std::int64_t>(scope.most, std::int64_t{room} * channel.batch_size()));
    if (most > 0) sources.push_back({name, most, channel.priority()});
  }
  return sources;
}

// One call a message, but what a batch handler gets together. What no handler takes waits for one.
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
    const bool alone = handler->shape != Shape::kBatch || single_.contains(message.id);
    const auto found = alone ? open.end() : open.find(handler);
    if (found != open.end()) {
      Call& call = calls[found->second];
      call.messages.push_back(&message);
      if (call.messages.size() >= static_cast<std::size_t>(handler->batch_size)) open.erase(found);
      continue;
    }
    if (!alone && handler->batch_size > 1) open[handler] = calls.size();
    calls.push_back({handler, {&message}});
  }
  return calls;
}

// Leases what is due to idle sessions. True if there was something.
bool LeasedHandlers::begin(const Registry& registry, const Scope& scope, Turn& turn) {
  std::vector<Run*> idle;
  for (const auto& run : runs_)
    if (run->state == Run::kIdle) idle.push_back(run.get());
  if (alone_ > 0) idle.resize(std::min<std::size_t>(idle.size(), busy() ? 0 : 1));
  if (idle.empty()) return false;
  const std::vector<Source> from = sources(registry, scope, idle.size());
  int limit = 0;
  for (const Source& source : from) limit = std::max(limit, source.most);
  if (limit == 0) return false;

  ports_.transaction.begin();
  const Micros now = ports_.clock.now();
  const Claim claim = claimer_.claim(from, limit, false);
  if (claim.messages.empty() && claim.leftovers.empty()) {
    ports_.transaction.commit();
    return false;
  }
  std::vector<std::pair<Run*, Call>> begun;
  std::vector<LeasedCall> statements;
  std::optional<Unsent> unsent;
  std::vector<Uuid> undeliverable;
  std::optional<Error> trouble;
  std::size_t left = 0;
  bool settled = false;
  try {
    Settlement settlement;
    dispose(claim.leftovers, now, settlement);
    const std::vector<Call> calls = calls_of(registry, claim.messages, settlement);
    settled = !claim.leftovers.empty() || !settlement.unhandled.empty();
    try {
      ports_.settler.settle(settlement);
    } catch (const Error& error) {
      trouble = error;
      for (const Burial& burial : settlement.burials) undeliverable.push_back(burial.message->id);
      for (const Snooze& snooze : settlement.snoozes) undeliverable.push_back(snooze.message->id);
      for (const Retry& retry : settlement.retries) undeliverable.push_back(retry.message->id);
      for (const Claimed* message : settlement.removed) undeliverable.push_back(message->id);
      for (const Claimed* message : settlement.unhandled) undeliverable.push_back(message->id);
      throw;
    }
    const std::size_t running = runs_.size() - count(Run::kIdle) - count(Run::kConnecting) - count(Run::kCleaning);
    const auto company = static_cast<int>(running + std::min(idle.size(), calls.size()) - 1);
    for (const Call& call : calls) {
      if (begun.size() == idle.size()) {
        ++left;
        continue;
      }
      Run& run = *idle[begun.size()];
      run.token = ports_.store.new_token();
      run.number = ports_.store.enter({run.token, run.session->backend(), *call.handler, *call.messages.front(),
                                       static_cast<int>(call.messages.size()), company});
      if (run.number < 0) continue;
      begun.emplace_back(&run, call);
      ports_.store.lease(call.messages, run.token, now + ports_.store.lease_length(*call.handler));
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
    if (!unsent) throw;
    ports_.transaction.rollback();
    fail(*unsent);
    return true;
  }
  const Micros started = ports_.clock.steady();
  for (std::size_t i = 0; i < begun.size(); ++i) {
    auto& [run, call] = begun[i];
    run->messages = call.messages.size();
    run->handler = *call.handler;
    run->waited = std::max<Micros>(0, now - call.messages.front()->attempt_at);
    run->renew_at = started + kLease / 2;
    run->stop = Run::kNot;
    run->stop_at = run->handler.timeout > 0 ? started + run->handler.timeout : 0;
    run->error.reset();
    enter_state(*run, Run::kRunning, started);
    run->session->run(statements[i]);
  }
  turn.more_is_due = alone_ == 0 && (claim.more_is_due || left > 0) && runs_.size() >= most_sessions();
  return !begun.empty() || settled;
}

// What cannot be settled must not stop the others: it comes again after a while.
void LeasedHandlers::put_off(const std::vector<Uuid>& ids, const Error& error) {
  ports_.store.warn(error);
  ports_.transaction.begin();
  ports_.source.begin({});
  Batch batch;
  std::vector<int> crashes;
  ports_.source.named(ids, batch, crashes);
  const Micros until = ports_.clock.now() + kPutOff;
  Settlement settlement;
  for (const Claimed& message : batch)
    if (!message.held) settlement.snoozes.push_back({&message, until});
  ports_.settler.settle(settlement);
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

// What no handler can be called with, because it is too large to be sent, say, has failed. What was claimed with it
// comes again.
void LeasedHandlers::fail(const Unsent& unsent) {
  const Micros now = ports_.clock.now();
  ports_.transaction.begin();
  ports_.source.begin({});
  Batch batch;
  std::vector<int> crashes;
  std::vector<Uuid> ids;
  for (const auto& [id, attempts] : unsent.messages) ids.push_back(id);
  ports_.source.named(ids, batch, crashes);
  // They were not locked meanwhile: what somebody else has tried since, or has now, is not charged.
  std::erase_if(batch, [&](const Claimed& message) {
    return message.held || message.attempt_at > now ||
           std::find(unsent.messages.begin(), unsent.messages.end(), std::pair(message.id, message.attempts)) ==
               unsent.messages.end();
  });
  Run run;
  run.messages = unsent.messages.size();
  run.handler = unsent.handler;
  run.error = unsent.error;
  Settlement settlement;
  settle_failed(run, batch, now, settlement);
  ports_.settler.settle(settlement);
  ports_.transaction.commit();
}

void LeasedHandlers::told_of_room(const std::optional<Error>& refusal) {
  no_room_ = refusal.has_value();
  ports_.store.note_connection(refusal);
}

// As many as there are messages due and no session for.
void LeasedHandlers::open_sessions(const Registry& registry, const Scope& scope, Turn& turn, Micros now) {
  const std::size_t most = most_sessions();
  if (count(Run::kIdle) > 0 && no_room_) told_of_room(std::nullopt);  // begin() has left it idle: no other is wanted
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
  if (wanted > room && alone_ == 0) turn.more_is_due = true;
  const std::size_t connecting = count(Run::kConnecting);
  const auto tried = static_cast<int>(at_once_ - std::min(at_once_, connecting));
  for (int i = std::min({wanted, room, tried}); i > 0; --i) {
    std::unique_ptr<HandlerSession> session;
    try {
      session = ports_.store.open(static_cast<int>(count(Run::kConnecting)));
    } catch (const Error& error) {
      if (error.sqlstate != "53300") throw;
      // What it has goes on; nothing is claimed, so nobody is charged.
      told_of_room(error);
      refused_until_ = now + kRoomWait;
      break;
    }
    if (!session) break;
    auto run = std::make_unique<Run>();
    run->session = std::move(session);
    enter_state(*run, Run::kConnecting, now);
    runs_.push_back(std::move(run));
    turn.moved = true;  // a local connection is often there at once
  }
  ports_.transaction.commit();
}

}  // namespace mq
