// A dispatcher over a fake server, and messages to try it with.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "fake_server.hpp"

namespace mq {

using fake::FakeClock;
using fake::kAlways;
using fake::kMillisecond;
using fake::Message;
using fake::Script;
using fake::Session;
using fake::Table;

inline constexpr Micros kLong = 3600 * kSecond;

// U untouched, H handled, F failed, S snoozed, D discarded, C conflict, X expired.
inline std::string shown(const std::vector<Outcome>& outcomes) {
  std::string text;
  for (const Outcome outcome : outcomes) text += "UHFSDCXYO"[static_cast<int>(outcome)];
  return text;
}

class DispatchTest : public testing::Test {
 protected:
  DispatchTest() {
    json.channel_name = batch.channel_name = "c";
    batch.shape = Shape::kBatch;
  }

  void start_over() {
    session.transaction.rollback();
    session.caller.calls.clear();
    table.clear();
  }

  // Sends the messages, and dispatches all that is in the table to `handler`. What came of each, by
  // place.
  std::string run(const std::vector<Message>& messages, const Handler* handler, Micros slice = kLong) {
    for (const Message& message : messages) table.send(message);
    claimed.clear();
    session.transaction.begin();
    session.queue.oldest("c", clock.now(), std::nullopt, 10'000, claimed);
    Batch heads = claimed;
    std::erase_if(heads, [](const Claimed& message) { return !message.ordered; });
    if (!heads.empty()) session.queue.runs(heads, clock.now(), 10'000, claimed);
    std::sort(claimed.begin(), claimed.end(), [](const auto& a, const auto& b) { return a.place < b.place; });
    return run_again(std::vector<const Handler*>(claimed.size(), handler), slice);
  }

  std::string run_again(const std::vector<const Handler*>& handlers, Micros slice = kLong) {
    Dispatcher dispatcher(session.transaction, session.caller, clock, {clock.now() + slice});
    dispatcher.run(claimed, handlers);
    failures = dispatcher.failures();
    outcomes = dispatcher.outcomes();
    wishes = dispatcher.wishes();
    check();
    return shown(outcomes);
  }

  // Whatever happens: effects are those of the messages that ran to their end, in their order; each
  // failure and each wish has its outcome.
  void check() const {
    std::vector<Uuid> ran;
    std::size_t failed = 0;
    for (std::size_t i = 0; i < claimed.size(); ++i) {
      const bool wished = outcomes[i] == Outcome::kSnoozed || outcomes[i] == Outcome::kDiscarded;
      if (wished || outcomes[i] == Outcome::kHandled) ran.push_back(claimed[i].id);
      EXPECT_EQ(wishes.contains(i), wished) << i;
      if (outcomes[i] == Outcome::kFailed || outcomes[i] == Outcome::kConflict) ++failed;
    }
    EXPECT_EQ(session.transaction.effects, ran);
    EXPECT_EQ(failures.size(), failed);
    EXPECT_FALSE(session.transaction.has_savepoint());
    EXPECT_LE(session.transaction.released, kMostSavepoints);
  }

  int calls(std::size_t i) const { return session.caller.calls_of(claimed[i].id); }

  FakeClock clock;
  Table table{clock};
  Session session{table, clock};
  Handler json;
  Handler batch;
  Batch claimed;
  std::vector<Outcome> outcomes;
  std::vector<Failure> failures;
  std::map<std::size_t, Wish> wishes;
};

inline const Message kGood;
inline const Message kBad{.script = {.failures = kAlways}};
inline const Message kConflicting{.script = {.conflicts = kAlways}};
inline const Message kSnoozing{.script = {.snoozes = kAlways}};
inline const Message kChangingOthers{.script = {.changes_others = true}};
inline const Message kDiscarding{.script = {.discards = true}};

}  // namespace mq
