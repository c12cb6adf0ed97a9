// The lease store of a worker, over the fake table and fake sessions.
#pragma once

#include "fake_sessions.hpp"
#include "queue/undeliverable.hpp"

namespace mq::fake {

class FakeLeaseStore final : public LeaseStore {
 public:
  explicit FakeLeaseStore(Backends& backends) : backends_(backends), table_(backends.table) {}
  // The worker has ended: no call of it is left.
  ~FakeLeaseStore() override {
    for (const int number : mine_) table_.calls.erase(number);
  }
  FakeLeaseStore(const FakeLeaseStore&) = delete;
  FakeLeaseStore& operator=(const FakeLeaseStore&) = delete;

  bool works() override {
    EXPECT_TRUE(table_.is_open);
    return enabled;
  }
  // The oldest due heads of all sources, though the server shares the limit evenly among them.
  Claim claim(const std::vector<Source>& sources, int limit) override {
    std::vector<const Row*> due;
    Claim claim;
    for (const Source& source : sources) {
      int most = source.most;
      for (const Row* row : table_.due_heads(source.channel_name, backends_.clock.time)) {
        if (table_.locked_elsewhere.contains(row->id) || table_.has_call(row->lease)) continue;
        if (most-- > 0)
          due.push_back(row);
        else
          claim.more_is_due = true;
      }
    }
    std::ranges::sort(due, older);
    const auto room = static_cast<std::size_t>(limit);
    claim.more_is_due = claim.more_is_due || due.size() > room;
    for (std::size_t i = 0; i < std::min(room, due.size()); ++i) {
      const Claimed message = table_.lock(*due[i]);
      (is_deliverable(message, backends_.clock.time) ? claim.messages : claim.undeliverable).push_back(message);
    }
    return claim;
  }
  void find(std::span<const Uuid> ids, Batch& batch) override {
    for (const Uuid& id : ids)
      if (const Row* row = table_.find(id); row != nullptr && !table_.locked_elsewhere.contains(id))
        batch.push_back(table_.lock(*row));
  }
  void settle(const Settlement& settlement) override {
    throw_next(settle_errors);
    const auto refuse = [&](const Claimed* message) {
      if (unsettleable.contains(message->id)) fail({"23514", "a check constraint is violated"});
    };
    std::ranges::for_each(settlement.removed, refuse);
    std::ranges::for_each(settlement.unhandled, refuse);
    std::ranges::for_each(settlement.dead_letters, refuse, &DeadLetter::message);
    table_.settle(settlement);
  }

  int most_sessions() override { return sessions; }
  std::unique_ptr<HandlerSession> open(int) override {
    return room ? std::make_unique<FakeSession>(backends_) : nullptr;
  }
  bool is_ours(int backend) override { return backends_.find(backend) != nullptr && !backends_.another_server; }
  void cancel(int backend) override {
    ++backends_.cancels;
    backends_.find(backend)->cancel();
  }
  void terminate(int backend) override {
    ++backends_.terminations;
    backends_.find(backend)->lose(Error("57P01", "terminating connection due to administrator command"));
  }
  void warn(const Error& error) override { warnings.push_back(error); }
  void note_connection(const std::optional<Error>& refusal) override { connections.push_back(refusal); }

  int running_on(std::string_view channel_name) override {
    return static_cast<int>(std::ranges::count_if(
        table_.calls, [&](const auto& call) { return call.second.channel_name == channel_name; }));
  }
  int due(std::string_view channel_name, Micros now, int limit) override {
    EXPECT_TRUE(table_.is_open);
    throw_next(due_errors);
    return std::min(limit, static_cast<int>(table_.due_heads(channel_name, now).size()));
  }
  int enter(const Entry& entry) override {
    EXPECT_TRUE(table_.is_open);
    const std::string name(entry.first.channel_name);
    if (entry.handler.max_workers > 0 && running_on(name) >= entry.handler.max_workers) return -1;
    table_.calls[++table_.last_call] = {entry.token, name};
    concurrency.push_back(entry.concurrency);
    mine_.insert(table_.last_call);
    return table_.last_call;
  }
  void leave(int number) override {
    EXPECT_EQ(mine_.erase(number), 1U) << "left a call that was not entered";
    table_.calls.erase(number);
  }
  bool was_told(int /* number */) override { return told; }

  std::int64_t new_token() override { return ++table_.last_token; }
  void lease(const std::vector<const Claimed*>& messages, std::int64_t token, Micros until) override {
    throw_next(lease_errors);
    for (const Claimed* message : messages) {
      Row& row = table_.change(message->id);
      EXPECT_GE(row.attempts_left, 1) << "leased without an attempt left";
      row.attempt_at = until;
      row.lease = token;
      ++row.attempts;
      --row.attempts_left;
    }
  }
  void renew(const std::vector<std::int64_t>& tokens, Micros until) override {
    throw_next(renew_errors);
    renewals.push_back(backends_.clock.time);
    for (const std::int64_t token : tokens) {
      Batch batch;
      (void)reclaim(token, batch);
      for (const Claimed& message : batch) table_.change(message.id).attempt_at = std::max(message.attempt_at, until);
    }
  }
  bool reclaim(std::int64_t token, Batch& batch) override {
    bool all = true;
    for (const auto& [id, row] : table_.rows) {
      if (row.lease != token) continue;
      if (table_.locked_elsewhere.contains(id))
        all = false;
      else
        batch.push_back(table_.lock(row, true));
    }
    return all;
  }
  std::vector<std::int64_t> orphans(std::size_t limit) override {
    std::set<std::int64_t> tokens;
    for (const auto& [id, row] : table_.rows)
      if (row.lease > 0 && !table_.has_call(row.lease) && tokens.size() < limit) tokens.insert(row.lease);
    return {tokens.begin(), tokens.end()};
  }
  LeasedCall call_of(const Handler& handler, const std::vector<const Claimed*>& messages) override {
    EXPECT_TRUE(handler.shape == Shape::kBatch || messages.size() == 1);
    std::string ids;
    for (const Claimed* message : messages) {
      if (unspeakable.contains(message->id)) fail({"54000", "invalid memory alloc request size"});
      ids.append(reinterpret_cast<const char*>(message->id.bytes.data()), sizeof(Uuid));
    }
    return {handler.function, {}, 0, ids, false, handler.timeout};
  }

  bool enabled = true;            // messages are handled in this database
  bool restore_at_error = false;  // not any more once a message is unspeakable or unsettleable
  int sessions = 4;
  bool told = false;  // the server tells sessions to end
  bool room = true;   // for another session
  // What the next calls of these functions fail with.
  std::deque<Error> due_errors, lease_errors, renew_errors, settle_errors;
  std::set<Uuid> unspeakable;   // no statement can be made of these messages
  std::set<Uuid> unsettleable;  // these can be snoozed or retried, but not removed or put aside
  std::vector<Error> warnings;
  std::vector<std::optional<Error>> connections;
  std::vector<Micros> renewals;  // when
  std::vector<int> concurrency;  // of the calls

 private:
  [[noreturn]] void fail(const Error& error) {
    if (restore_at_error) enabled = false;
    throw error;
  }

  Backends& backends_;
  FakeTable& table_;
  std::set<int> mine_;  // numbers of calls
};

}  // namespace mq::fake
