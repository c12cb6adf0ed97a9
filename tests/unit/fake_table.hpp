// The table of messages as leased calls know it, and the one transaction that changes it.
//
// A rollback undoes what the transaction changed. Each breach of what every user of it has to
// observe fails the test: a begin in a transaction, a message that is settled twice or without its
// lock. What the transaction claimed does not outlive it, which the address sanitizer notices.
#pragma once

#include <gtest/gtest.h>

#include <list>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "fake_messages.hpp"
#include "pg/transaction.hpp"
#include "queue/settlement.hpp"
#include "shmem/aborted_call.hpp"

namespace mq::fake {

struct Dead {
  Uuid id;
  std::string reason;
  int attempts = 0;
};

struct FailedAttempt {
  Uuid id;
  int attempt = 0;
  std::string sqlstate;
  Micros duration = 0;
  bool crash = false;
};

// Throws the next of these errors, if there is one.
inline void throw_next(std::deque<Error>& errors) {
  if (errors.empty()) return;
  const Error error = errors.front();
  errors.pop_front();
  throw error;
}

inline bool older(const Row* a, const Row* b) {
  return a->attempt_at != b->attempt_at ? a->attempt_at < b->attempt_at : a->seq < b->seq;
}

class FakeTable final : public Transaction {
 public:
  explicit FakeTable(FakeClock& clock) : clock_(clock) {}

  Uuid send(const Message& message) {
    const Row row(message, ++last_seq_, clock_.time);
    rows.emplace(row.id, row);
    return row.id;
  }

  Row* find(const Uuid& id) {
    const auto found = rows.find(id);
    return found == rows.end() ? nullptr : &found->second;
  }
  // The first message of its ordered channel.
  const Row& head_of(const Row& row) const {
    return std::ranges::find_if(
               rows, [&](const auto& other) { return other.first == row.id || other.second.shares_order(row); })
        ->second;
  }
  bool is_head(const Row& row) const { return head_of(row).id == row.id; }
  // Heads of the channel name that are due by then, the oldest first.
  std::vector<const Row*> due_heads(std::string_view channel_name, Micros now) const {
    std::vector<const Row*> due;
    for (const auto& [id, row] : rows)
      if (row.channel_name == channel_name && row.attempt_at <= now && !row.blocks && is_head(row)) due.push_back(&row);
    std::ranges::sort(due, older);
    return due;
  }
  // When the next head is due; kNever: never.
  Micros next_due() const {
    Micros next = kNever;
    for (const auto& [id, row] : rows)
      if (row.attempt_at < next && !row.blocks && is_head(row)) next = row.attempt_at;
    return next;
  }
  // Whether the lease's call runs, or was aborted and is about to be charged.
  bool has_call(std::int64_t token) const {
    return std::ranges::any_of(calls, [&](const auto& call) { return call.second.token == token; }) ||
           std::ranges::count(aborted_calls, token, &AbortedCall::token) > 0;
  }
  std::ptrdiff_t died(const Uuid& id) const { return std::ranges::count(dead, id, &Dead::id); }
  std::ptrdiff_t failed(const Uuid& id) const { return std::ranges::count(failures, id, &FailedAttempt::id); }

  void begin() override {
    EXPECT_FALSE(is_open) << "begin in a transaction";
    is_open = true;
    dead_before_ = dead.size();
    failures_before_ = failures.size();
  }
  void commit() override {
    EXPECT_TRUE(is_open) << "commit outside a transaction";
    claimed_.clear();  // though the commit may fail
    if (!locked_.empty()) throw_next(refusals);
    end();
  }
  void rollback() override {
    if (!is_open) return;
    for (const auto& [id, row] : undo_) rows.insert_or_assign(id, row);
    dead.resize(dead_before_);
    failures.resize(failures_before_);
    end();
  }
  void set_savepoint() override { ADD_FAILURE() << "leased calls need no savepoint"; }
  bool release_savepoint() override {
    set_savepoint();
    return true;
  }
  void rollback_to_savepoint() override { set_savepoint(); }

  // The message as a claim returns it. `by_its_call`: as its leased call finds it by the token.
  Claimed lock(const Row& row, bool by_its_call = false) {
    EXPECT_TRUE(is_open) << "a lock outside a transaction";
    EXPECT_FALSE(locked_elsewhere.contains(row.id)) << "waits for a lock";
    locked_.insert(row.id);
    Claimed message = claimed_.emplace_back(row).claimed();
    message.held = !by_its_call && has_call(row.lease);
    message.orphan = !by_its_call && row.lease > 0 && !message.held;
    if (by_its_call || message.orphan) {
      message.lease = row.lease;
      --message.attempts;
      ++message.attempts_left;
    }
    return message;
  }
  Row& change(const Uuid& id) {
    EXPECT_TRUE(locked_.contains(id)) << "changes a message that it has not locked";
    Row& row = rows.at(id);
    undo_.emplace(id, row);
    return row;
  }
  void settle(const Settlement& settlement) {
    const auto take = [&](const Claimed* message) -> Row& {
      EXPECT_TRUE(settled_.insert(message->id).second) << "a message is settled twice in a transaction";
      return change(message->id);
    };
    const auto charge = [](Row& row, int attempts) {
      row.lease = 0;
      row.attempts += attempts;
      row.attempts_left -= attempts;
    };
    for (const Claimed* message : settlement.removed) {
      take(message);
      rows.erase(message->id);
    }
    for (const Retry& retry : settlement.retries) {
      Row& row = take(retry.message);
      charge(row, retry.message->lease == 0 ? 1 : 0);  // a lease has charged the attempt already
      row.attempt_at = retry.attempt_at;
      row.retry_backoff = retry.retry_backoff;
      EXPECT_GE(row.attempts_left, 1) << "to be retried without an attempt left";
    }
    for (const Snooze& snooze : settlement.snoozes) {
      Row& row = take(snooze.message);
      charge(row, snooze.message->lease == 0 ? 0 : -1);
      row.attempt_at = snooze.attempt_at;
    }
    for (const Claimed* message : settlement.unhandled) take(message).attempt_at = kNever;
    for (const Failure& failure : settlement.failures)
      failures.push_back({failure.message->id, failure.message->attempts + 1, failure.error.sqlstate,
                          failure.duration.value_or(0), failure.crash});
    for (const DeadLetter& dead_letter : settlement.dead_letters) {
      Row& row = take(dead_letter.message);
      dead.push_back({row.id, dead_letter.reason, dead_letter.message->attempts + (dead_letter.charged ? 1 : 0)});
      row.lease = 0;
      row.blocks = dead_letter.block && row.ordered;
      if (!row.blocks) rows.erase(dead_letter.message->id);
    }
  }

  std::map<Uuid, Row> rows;  // in the order in which they were sent
  std::vector<Dead> dead;
  std::vector<FailedAttempt> failures;
  std::set<Uuid> locked_elsewhere;  // by other sessions
  std::deque<Error> refusals;       // the next commits of transactions that locked messages fail with these
  bool is_open = false;             // the transaction
  // What workers share about leased calls.
  struct LeasedCallEntry {
    std::int64_t token;
    std::string channel_name;
  };
  std::map<int, LeasedCallEntry> calls;  // that run, by number
  std::vector<AbortedCall> aborted_calls;
  int last_call = 0;
  std::int64_t last_token = 0;

 private:
  void end() {
    is_open = false;
    claimed_.clear();
    locked_.clear();
    settled_.clear();
    undo_.clear();
  }

  FakeClock& clock_;
  std::int64_t last_seq_ = 0;
  std::set<Uuid> locked_;
  std::set<Uuid> settled_;
  std::list<Row> claimed_;    // copies that Claimed messages point into
  std::map<Uuid, Row> undo_;  // changed rows, as they were
  std::size_t dead_before_ = 0;
  std::size_t failures_before_ = 0;
};

}  // namespace mq::fake
