#include "fake_server.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

namespace mq::fake {

namespace {

bool due_before(const Row* a, const Row* b) {
  return std::tie(a->attempt_at, a->place) < std::tie(b->attempt_at, b->place);
}

}  // namespace

// --- FakeTransaction ---

void FakeTransaction::begin() {
  EXPECT_FALSE(open_) << "begin inside a transaction";
  open_ = true;
  began_at_ = clock_.time;
}

void FakeTransaction::commit() {
  EXPECT_TRUE(open_ && !savepoint_) << "commit outside a transaction, or with a savepoint set";
  copies_.clear();  // what statements returned does not outlive them, though the commit may fail
  if (!refusals.empty() && (claimed_ > 0 || settled_)) {
    const Error refusal = refusals.front();
    refusals.pop_front();
    throw refusal;
  }
  for (const Uuid& id : effects)
    if (const std::string& sqlstate = options_[id].refused_at_commit; !sqlstate.empty())
      throw Error(sqlstate, "a deferred constraint is violated");

  const std::set<Uuid> written(effects.begin(), effects.end());
  EXPECT_EQ(written.size(), effects.size()) << "effects of a message twice in a transaction";
  EXPECT_EQ(written, settled_effects_) << "effects do not commit together with their messages' end";
  for (const auto& change : changes_) change();
  for (const Uuid& id : effects)
    (table_.find(id) != nullptr || table_.died(id) > 0 ? table_.kept : table_.effects).push_back(id);
  end(true);
}

void FakeTransaction::rollback() {
  if (open_) end(false);
}

void FakeTransaction::end(bool committed) {
  if (claimed_ > 0) history.push_back({released, claimed_, effects.size(), clock_.time - began_at_, committed});
  open_ = settled_ = false;
  released = 0;
  claimed_ = 0;
  savepoint_.reset();
  effects.clear();
  options_.clear();
  changes_.clear();
  settled_effects_.clear();
  settled_messages_.clear();
  copies_.clear();
  unlock();
}

void FakeTransaction::unlock() {
  std::erase_if(table_.locks, [&](const auto& lock) { return lock.second == this; });
}

void FakeTransaction::set_savepoint() {
  EXPECT_TRUE(open_ && !savepoint_) << "savepoint outside a transaction, or in another";
  savepoint_ = effects.size();
}

void FakeTransaction::release_savepoint() {
  EXPECT_TRUE(savepoint_) << "no savepoint to release";
  savepoint_.reset();
  ++released;
}

void FakeTransaction::rollback_to_savepoint() {
  EXPECT_TRUE(savepoint_) << "no savepoint to roll back to";
  effects.resize(savepoint_.value_or(0));
  savepoint_.reset();
}

const Row& FakeTransaction::lock(const Row& row) {
  EXPECT_TRUE(open_) << "claim outside a transaction";
  if (table_.locks.emplace(row.id, this).second) ++claimed_;
  return copies_.emplace_back(row);
}

void FakeTransaction::add_effect(const Uuid& id, const EffectOptions& options) {
  effects.push_back(id);
  options_[id] = options;
}

std::set<Uuid> FakeTransaction::done() const {
  std::set<Uuid> result;
  for (const Uuid& id : effects)
    if (!options_.at(id).stops_channel) result.insert(id);
  return result;
}

void FakeTransaction::settle(const Settlement& settlement) {
  EXPECT_TRUE(open_ && !savepoint_) << "settled outside a transaction, or under a savepoint";
  settled_ = true;
  const auto take = [&](const Claimed& message) {
    EXPECT_TRUE(settled_messages_.insert(message.id).second) << "a message is settled twice in a transaction";
    EXPECT_NE(table_.find(message.id), nullptr) << "settled a message that is not there";
    return message.id;
  };
  for (const Claimed* message : settlement.removed) {
    const Uuid id = take(*message);
    if (!message->uncommitted && message->lease == 0) settled_effects_.insert(id);
    changes_.emplace_back([this, id, expired = message->uncommitted] {
      if (expired) table_.expired.push_back(id);
      table_.erase(id);
    });
  }
  for (const Retry& retry : settlement.retries)
    changes_.emplace_back([this, id = take(*retry.message), at = retry.attempt_at, backoff = retry.retry_backoff,
                           charge = retry.message->lease == 0 ? 1 : 0] {
      Row* row = table_.find(id);
      row->attempt_at = at;
      row->retry_backoff = backoff;
      row->lease = 0;
      row->attempts += charge;
      row->attempts_left -= charge;
      EXPECT_GE(row->attempts_left, 1) << "to be retried without an attempt left";
    });
  for (const Snooze& snooze : settlement.snoozes) {
    const Uuid id = take(*snooze.message);
    const bool leased = snooze.message->lease != 0;
    const bool wished = std::find(effects.begin(), effects.end(), id) != effects.end();
    if (wished) settled_effects_.insert(id);
    changes_.emplace_back([this, id, leased, wished, at = snooze.attempt_at] {
      Row* row = table_.find(id);
      row->attempt_at = at;
      row->lease = 0;
      if (leased) {
        --row->attempts;
        ++row->attempts_left;
      }
      if (wished) ++table_.snoozes[id];
    });
  }
  for (const Claimed* message : settlement.unhandled)
    changes_.emplace_back([this, id = take(*message)] { table_.find(id)->attempt_at = kNever; });
  for (const Burial& burial : settlement.burials) {
    const Uuid id = take(*burial.message);
    if (burial.charged && burial.reason == "discarded" && burial.message->lease == 0) settled_effects_.insert(id);
    changes_.emplace_back([this, id, burial, leased = burial.message->lease != 0] {
      const bool block = burial.block_as_registered ? table_.blocks_as_registered(*table_.find(id)) : burial.block;
      const bool charge = burial.charged && !leased;
      table_.bury(id, burial.reason, burial.error ? burial.error->sqlstate : "", charge, block);
    });
  }
  for (const Failure& failure : settlement.failures) {
    const Claimed& message = *failure.message;
    const FailedAttempt failed{message.id,
                               std::string(message.channel_name),
                               std::string(message.channel_args),
                               std::string(message.name),
                               message.attempts + 1,
                               failure.error.sqlstate,
                               failure.duration,
                               failure.crash};
    changes_.emplace_back([this, failed] { table_.failures.push_back(failed); });
  }
}

// --- FakeQueue ---

std::vector<const Row*> FakeQueue::due_heads(std::string_view channel_name, Micros now) const {
  std::vector<const Row*> due;
  for (const auto& [place, row] : table_.rows)
    if (row.channel_name == channel_name && row.attempt_at <= now && !row.blocks && table_.is_head(row) &&
        !table_.is_locked_by_another(row, transaction_))
      due.push_back(&row);
  std::sort(due.begin(), due.end(), due_before);
  return due;
}

void FakeQueue::append(const Row& found, Batch& batch) {
  const Row& row = transaction_.lock(found);
  Claimed message;
  message.id = row.id;
  message.channel_key = row.channel_key;
  message.place = row.place;
  message.attempt_at = row.attempt_at;
  message.retry_backoff = row.retry_backoff;
  message.expires_at = row.expires_at;
  message.channel_name = row.channel_name;
  message.channel_args = row.channel_args;
  message.name = row.name;
  message.attempts = row.attempts;
  message.attempts_left = row.attempts_left;
  message.ordered = row.ordered;
  message.uncommitted = row.uncommitted;
  message.has_payload = row.has_payload;
  message.held = row.lease > 0 && table_.lease_is_alive(row.lease);
  batch.push_back(message);
}

void FakeQueue::fail_if_told() {
  if (claim_errors.empty()) return;
  const Error error = claim_errors.front();
  claim_errors.pop_front();
  throw error;
}

void FakeQueue::oldest(std::string_view channel_name, Micros now, std::optional<Position> after, int limit,
                       Batch& batch) {
  fail_if_told();
  EXPECT_GT(limit, 0);
  ++scans;
  for (const Row* row : due_heads(channel_name, now)) {
    if (after && std::tie(row->attempt_at, row->place) <= std::tie(after->attempt_at, after->place)) continue;
    if (limit-- == 0) break;
    append(*row, batch);
  }
}

void FakeQueue::fair(std::string_view channel_name, Micros now, std::int64_t start, int limit, Batch& batch) {
  fail_if_told();
  EXPECT_GT(limit, 0);
  ++draws;
  std::map<std::int64_t, const Row*> firsts;
  for (const Row* row : due_heads(channel_name, now)) firsts.emplace(row->channel_key, row);
  auto next = firsts.lower_bound(start);
  for (std::size_t i = 0; i < firsts.size() && limit-- > 0; ++i, ++next) {
    if (next == firsts.end()) next = firsts.begin();
    append(*next->second, batch);
  }
}

void FakeQueue::runs(std::span<const Claimed> heads, Micros now, int limit, Batch& batch) {
  EXPECT_GT(limit, 0);
  for (const Claimed& head : heads) {
    const auto& channel = table_.ordered.at({std::string(head.channel_name), std::string(head.channel_args)});
    auto place = channel.upper_bound(head.place);
    for (int i = 0; i < limit && place != channel.end(); ++i, ++place) {
      const Row& row = table_.rows.at(*place);
      if (row.attempt_at > now || row.blocks || table_.is_locked_by_another(row, transaction_)) break;
      append(row, batch);
    }
  }
}

void FakeQueue::named(std::span<const Uuid> ids, Batch& batch, std::vector<int>& crashes) {
  for (const Uuid& id : ids) {
    const Row* row = table_.find(id);
    if (row == nullptr || table_.is_locked_by_another(*row, transaction_)) continue;
    append(*row, batch);
    crashes.push_back(
        static_cast<int>(std::count_if(table_.failures.begin(), table_.failures.end(),
                                       [&](const FailedAttempt& failed) { return failed.id == id && failed.crash; })));
  }
}

void FakeQueue::again(std::span<const Uuid> ids, Micros now, Batch& batch) {
  if (on_again) on_again();
  for (const Uuid& id : ids) {
    const Row* row = table_.find(id);
    if (row == nullptr || row->attempt_at > now || row->blocks || !table_.is_head(*row)) continue;
    if (!table_.is_locked_by_another(*row, transaction_)) append(*row, batch);
  }
}

bool FakeQueue::is_due(std::string_view channel_name, Micros now) {
  return std::any_of(table_.rows.begin(), table_.rows.end(), [&](const auto& entry) {
    const Row& row = entry.second;
    return row.channel_name == channel_name && row.attempt_at <= now && !row.blocks && table_.is_head(row);
  });
}

bool FakeQueue::take_place(std::string_view channel_name, int most) {
  const auto found = places_taken.find(channel_name);
  if (found != places_taken.end() && found->second >= most) return false;
  taken.emplace_back(channel_name);
  return true;
}

void FakeQueue::settle(const Settlement& settlement) {
  if (!settle_errors.empty()) {
    const Error error = settle_errors.front();
    settle_errors.pop_front();
    throw error;
  }
  const auto refuse = [&](const Claimed* message) {
    if (unsettleable.contains(message->id)) throw Error("23514", "a check constraint is violated");
  };
  for (const Claimed* message : settlement.removed) refuse(message);
  for (const Burial& burial : settlement.burials) refuse(burial.message);
  for (const Claimed* message : settlement.unhandled) refuse(message);
  transaction_.settle(settlement);
}

// --- FakeHandlers ---

void FakeHandlers::call(const Handler& handler, std::span<const Claimed* const> messages, bool yields) {
  EXPECT_TRUE(transaction_.has_savepoint()) << "a handler is called outside a savepoint";
  EXPECT_FALSE(messages.empty());
  EXPECT_TRUE(handler.shape == Shape::kBatch || messages.size() == 1) << "several messages for a handler of one";
  functions.push_back(handler.function);
  std::vector<Uuid>& call = calls.emplace_back();
  for (const Claimed* message : messages) call.push_back(message->id);
  const Micros started = clock_.time;
  if (during) during();

  const bool company = !transaction_.effects.empty();
  // What a failing handler has written before is there to be undone.
  std::optional<Error> error;
  std::set<Uuid> done;
  if (std::any_of(messages.begin(), messages.end(), [](const Claimed* message) { return message->ordered; }))
    done = transaction_.done();
  wishes_.clear();
  changed_ = false;
  for (const Claimed* message : messages) {
    Row* row = table_.find(message->id);
    if (row == nullptr) throw Error("XX000", "a handler is called with a message that is gone");
    EXPECT_FALSE(table_.is_behind_another(*row, done))
        << "place " << row->place << " starts before an earlier one of its channel is done";
    EXPECT_LE(row->attempt_at, clock_.time) << "place " << row->place << " is not due";
    EXPECT_GT(row->expires_at, started) << "place " << row->place << " has expired";
    const Script& script = row->script;
    if (yields && clock_.time + script.cost - started > patience) {
      clock_.time = started + patience;
      throw Yielded{in_conflict};
    }
    clock_.time += script.cost;
    changed_ = changed_ || script.changes_others;
    const bool snoozes = table_.snoozes[row->id] < script.snoozes;
    const bool discards = !snoozes && script.discards;
    if (snoozes) wishes_.push_back({Wish::kSnooze, row->id, kSnooze, ""});
    if (discards) wishes_.push_back({Wish::kDiscard, row->id, 0, "the script says so"});
    transaction_.add_effect(
        row->id, {.refused_at_commit = row->attempts < script.failures_at_commit ? script.sqlstate_at_commit : "",
                  .stops_channel = snoozes || (discards && handler.block_on_dead)});
    done.insert(row->id);
    int& conflicts = table_.conflicts[row->id];
    if (conflicts < script.conflicts) {
      ++conflicts;
      error = Error("40001", "could not serialize access");
    } else if (script.collides && company) {
      error = Error("42P07", "relation exists");
    } else if (!error && (row->attempts < script.failures || (script.fails_in_company && messages.size() > 1) ||
                          (script.flaky > 0 && clock_.dice() < script.flaky))) {
      error = Error(script.sqlstate, "the script says so");
    }
  }
  if (error) throw *error;
}

int FakeHandlers::calls_of(const Uuid& id) const {
  return static_cast<int>(std::count_if(calls.begin(), calls.end(), [&](const std::vector<Uuid>& call) {
    return std::find(call.begin(), call.end(), id) != call.end();
  }));
}

// --- FakeHost ---

Handler& FakeHost::add_handler(const std::string& channel_name, Shape shape, std::optional<std::string> message_name) {
  Handler& handler = handlers.emplace_back();
  handler.channel_name = channel_name;
  handler.message_name = std::move(message_name);
  handler.shape = shape;
  handler.batch_size = 500;
  handler.max_backoff = 3600 * kSecond;
  changed = true;
  return handler;
}

bool FakeHost::refresh(Registry& registry) {
  if (installed_for-- <= 0) return false;
  seen_ = &registry;
  if (!changed && !registry.channels().empty()) return true;
  changed = false;
  registry.clear();
  for (const Handler& handler : handlers) registry.add(handler);
  for (const auto& [channel_name, why] : parked) registry.park(channel_name, why);
  return true;
}

bool FakeHost::expire() {
  ++expire_steps;
  std::vector<Uuid> expired;
  for (const auto& [place, row] : table_.rows)
    if (row.expires_at <= clock_.time && (row.attempt_at <= clock_.time || row.attempt_at == kNever) &&
        !row.uncommitted && !row.blocks && !table_.locks.contains(row.id) && !table_.lease_is_alive(row.lease))
      expired.push_back(row.id);
  for (const Uuid& id : expired) table_.bury(id, "expired", "", false, table_.blocks_as_registered(*table_.find(id)));
  return !expired.empty();
}

bool FakeHost::wake_unhandled() {
  bool woken = false;
  for (auto& [place, row] : table_.rows) {
    const Channel* channel = seen_ != nullptr ? seen_->find(row.channel_name) : nullptr;
    if (row.attempt_at != kNever || channel == nullptr || channel->find(row.name) == nullptr) continue;
    row.attempt_at = clock_.time;
    woken = true;
  }
  return woken;
}

Host::Swept FakeHost::sweep() {
  ++sweeps;
  return {on_sweep && on_sweep(), sweep_failure};
}

bool FakeHost::wait(Micros most) {
  waits.push_back(most);
  pass(most);
  if (--patience < 0) {
    ADD_FAILURE() << "the worker did not come to an end";
    return false;
  }
  if (wants_end) return !wants_end();
  return seen_ == nullptr || table_.next_due(*seen_) || table_.next_expiry();
}

bool FakeHost::wait_to_leave(Micros most) {
  pass(most);
  EXPECT_GE(--patience, 0) << "the worker did not come to an end";
  return may_wait_to_leave && patience >= 0;
}

void FakeHost::pass(Micros most) {
  if (most > 0) most = std::clamp<Micros>(ready_at(watched) - clock_.steady(), 0, most);
  clock_.time += most;
}

}  // namespace mq::fake
