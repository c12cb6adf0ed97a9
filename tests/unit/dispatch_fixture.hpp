// A dispatcher over a fake transaction and fake handlers, and messages to try it with.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fake_messages.hpp"
#include "worker/dispatch.hpp"

namespace mq {

using fake::kAlways;
using fake::kMillisecond;
using fake::Message;

inline constexpr Micros kLong = 3600 * kSecond;

// One transaction: its savepoint, and what handlers wrote in it.
struct FakeTransaction final : Transaction {
  void begin() override { ADD_FAILURE() << "the caller begins the transaction of a batch"; }
  void commit() override { ADD_FAILURE() << "the caller ends the transaction of a batch"; }
  void rollback() override { commit(); }
  void set_savepoint() override {
    EXPECT_FALSE(savepoint) << "a savepoint in another";
    savepoint = effects.size();
  }
  bool release_savepoint() override {
    EXPECT_TRUE(savepoint) << "no savepoint to release";
    savepoint.reset();
    ++released;
    return writes;
  }
  void rollback_to_savepoint() override {
    EXPECT_TRUE(savepoint) << "no savepoint to roll back to";
    effects.resize(savepoint.value_or(0));
    savepoint.reset();
  }

  struct Effect {
    const fake::Row* row = nullptr;
    bool stops_channel = false;  // nothing may run behind it in its ordered channel
  };
  std::optional<std::size_t> savepoint;  // how many effects there were
  std::vector<Effect> effects;
  int released = 0;    // savepoints
  bool writes = true;  // whether calls do
};

// Handlers that do as the scripts of their messages say. A message must not be called before the
// earlier ones of its ordered channel are done, nor when it has expired.
struct FakeCaller final : HandlerCaller {
  FakeCaller(std::deque<fake::Row>& all_rows, FakeTransaction& of, fake::FakeClock& the_clock)
      : rows(all_rows), transaction(of), clock(the_clock) {}

  bool may_refuse() override { return true; }
  std::size_t may_begin(std::span<const Claimed* const> messages) override {
    std::size_t granted = 0;
    while (granted < messages.size() && tokens > 0 &&
           std::ranges::find(throttled, messages[granted]->seq) == throttled.end()) {
      ++granted;
      --tokens;
    }
    return granted;
  }

  void call(const Handler& handler, std::span<const Claimed* const> messages, bool /* yields */) override {
    EXPECT_TRUE(transaction.savepoint) << "a handler is called outside a savepoint";
    EXPECT_FALSE(messages.empty());
    EXPECT_TRUE(handler.shape == Shape::kBatch || messages.size() == 1) << "several messages for a handler of one";
    std::vector<std::int64_t>& call = calls.emplace_back();
    for (const Claimed* message : messages) call.push_back(message->seq);
    const Micros started = clock.time;
    const std::size_t before = transaction.effects.size();
    asked.clear();
    changed = false;
    if (during) during();
    // What a handler that fails has written before is there to be undone.
    std::optional<Error> error;
    for (const std::int64_t seq : call) {
      fake::Row& row = rows.at(static_cast<std::size_t>(seq));
      expect_done_before(row, before);
      EXPECT_GT(row.expires_at, started) << "seq " << seq << " has expired";
      clock.time += row.script.cost;
      changed = changed || row.script.changes_others;
      const bool snoozes = row.script.snoozes > 0;
      const bool discards = !snoozes && row.script.discards;
      if (snoozes) asked.push_back({Disposition::kSnooze, row.id, fake::kSnooze, ""});
      if (discards) asked.push_back({Disposition::kDiscard, row.id, 0, "the script says so"});
      transaction.effects.push_back({&row, snoozes || (discards && handler.block_on_dead)});
      if (auto its = row.error_of_call(1, messages.size() > 1, clock); its && (!error || its->is_conflict()))
        error = its;
    }
    Cancelled gone;
    for (const Claimed* message : messages)
      if (std::ranges::find(cancelled, message->seq) != cancelled.end()) gone.messages.push_back(message->id);
    if (!gone.messages.empty()) throw gone;
    if (error) throw *error;
  }

  // The effects from `call` on are of the same call, whose array may go on behind any message.
  void expect_done_before(const fake::Row& row, std::size_t call) const {
    for (const fake::Row& other : rows) {
      if (other.seq >= row.seq || !other.shares_order(row)) continue;
      const auto effect = std::ranges::find(transaction.effects, &other, &FakeTransaction::Effect::row);
      const bool in_this_call = effect - transaction.effects.begin() >= static_cast<std::ptrdiff_t>(call);
      EXPECT_TRUE(effect != transaction.effects.end() && (in_this_call || !effect->stops_channel))
          << "seq " << row.seq << " starts before an earlier one of its channel is done";
    }
  }

  std::vector<Disposition> dispositions() override { return std::exchange(asked, {}); }
  bool has_changed(std::span<const Claimed> messages) override { return changed && !messages.empty(); }
  bool should_yield() override { return calls.size() >= static_cast<std::size_t>(yield_after); }

  std::deque<fake::Row>& rows;
  FakeTransaction& transaction;
  fake::FakeClock& clock;
  std::vector<std::vector<std::int64_t>> calls;  // the seq of their messages
  std::vector<Disposition> asked;                // in the last call
  bool changed = false;                          // the last call changed others
  std::vector<std::int64_t> cancelled;           // the seq of messages that are cancelled during their calls
  int yield_after = kAlways;                     // calls
  int tokens = kAlways;                          // messages that may be handled, by their rate
  std::vector<std::int64_t> throttled;           // the seq of messages whose channels may have no call
  std::function<void()> during;                  // runs in each call
};

class DispatchTest : public testing::Test {
 protected:
  DispatchTest() { batch.shape = Shape::kBatch; }

  // Dispatches the messages, in a new transaction. Returns what came of each: U untouched,
  // H handled, F failed, S snoozed, D discarded, C conflict, X expired, Y yielded, O collided,
  // L cancelled, T throttled.
  std::string run(const std::vector<Message>& messages, const std::vector<const Handler*>& handlers,
                  Micros slice = kLong) {
    transaction = {};
    transaction.writes = writes;
    caller.calls.clear();
    rows.clear();
    claimed.clear();
    for (const Message& message : messages)
      rows.emplace_back(message, static_cast<std::int64_t>(rows.size()), clock.time);
    for (const fake::Row& row : rows) claimed.push_back(row.claimed());
    Dispatcher dispatcher(transaction, caller, clock, {clock.time + slice});
    dispatcher.run(claimed, handlers);
    failures = dispatcher.failures();
    outcomes = dispatcher.outcomes();
    dispositions = dispatcher.dispositions();
    check();
    std::string shown;
    for (const Outcome outcome : outcomes) shown += "UHFSDCXYOLT"[static_cast<int>(outcome)];
    return shown;
  }
  std::string run(const std::vector<Message>& messages, const Handler* handler, Micros slice = kLong) {
    return run(messages, std::vector<const Handler*>(messages.size(), handler), slice);
  }

  // Always: effects are those of the messages that ran to their end, in their order; each failure
  // and each disposition has its outcome.
  void check() const {
    std::vector<const fake::Row*> ran, effects;
    std::size_t failed = 0;
    for (std::size_t i = 0; i < claimed.size(); ++i) {
      const bool asked = outcomes[i] == Outcome::kSnoozed || outcomes[i] == Outcome::kDiscarded;
      if (asked || outcomes[i] == Outcome::kHandled) ran.push_back(&rows[i]);
      EXPECT_EQ(dispositions.contains(i), asked) << i;
      if (outcomes[i] == Outcome::kFailed || outcomes[i] == Outcome::kConflict) ++failed;
    }
    for (const auto& effect : transaction.effects) effects.push_back(effect.row);
    EXPECT_EQ(effects, ran);
    EXPECT_EQ(failures.size(), failed);
    EXPECT_FALSE(transaction.savepoint);
    if (writes) {
      EXPECT_LE(transaction.released, kMostSavepoints);
    }
  }

  // How many calls had the message.
  std::ptrdiff_t calls(std::size_t i) const {
    const auto seq = static_cast<std::int64_t>(i);
    return std::ranges::count_if(caller.calls, [&](const auto& call) { return std::ranges::count(call, seq) > 0; });
  }

  bool writes = true;  // whether handlers do
  fake::FakeClock clock;
  std::deque<fake::Row> rows;
  FakeTransaction transaction;
  FakeCaller caller{rows, transaction, clock};
  Handler json;
  Handler batch;
  Batch claimed;
  std::vector<Outcome> outcomes;
  std::vector<Failure> failures;
  std::map<std::size_t, Disposition> dispositions;
};

inline const Message kGood;
inline const Message kBad{.script = {.failures = kAlways}};
inline const Message kConflicting{.script = {.conflicts = kAlways}};
inline const Message kSnoozing{.script = {.snoozes = kAlways}};
inline const Message kChangingOthers{.script = {.changes_others = true}};
inline const Message kDiscarding{.script = {.discards = true}};

}  // namespace mq
