// Sessions that leased handlers run in, in the fake time.
//
// A call takes as long and ends as the scripts of its messages say. Each breach of what every call
// has to observe fails the test: it runs without a committed lease, or without an attempt left, or
// once its message has expired; two run at once for one message or one ordered channel.
#pragma once

#include <cstring>
#include <utility>

#include "fake_table.hpp"
#include "leased/executor.hpp"

namespace mq::fake {

class FakeSession;

// The server's side of all sessions.
struct Backends {
  Backends(FakeTable& the_table, FakeClock& the_clock) : table(the_table), clock(the_clock) {}

  FakeSession* find(int backend) {
    const auto found = sessions.find(backend);
    return found == sessions.end() ? nullptr : found->second;
  }
  std::ptrdiff_t calls_of(const Uuid& id) const {
    return std::ranges::count_if(calls, [&](const auto& call) { return std::ranges::count(call, id) > 0; });
  }

  FakeTable& table;
  FakeClock& clock;
  std::map<int, FakeSession*> sessions;  // by process id, which is also the socket's descriptor
  Micros connect_takes = 0;
  Micros clean_takes = 0;
  std::deque<Error> refusals;        // of the next connections
  std::size_t most_sessions = 1000;  // further ones are refused
  bool another_server = false;
  bool cleans_badly = false;

  int opened = 0;
  std::ptrdiff_t most_running = 0;
  int cancels = 0;
  int terminations = 0;
  std::vector<std::vector<Uuid>> calls;
  std::map<Uuid, int> finished;  // calls that succeeded
};

class FakeSession final : public HandlerSession {
 public:
  explicit FakeSession(Backends& backends)
      : backends_(backends), backend_(++backends.opened), until_(backends.clock.steady() + backends.connect_takes) {
    backends_.sessions[backend_] = this;
    if (backends_.sessions.size() > backends_.most_sessions) pending_ = Error("53300", "too many connections for role");
    if (backends_.refusals.empty()) return;
    pending_ = backends_.refusals.front();
    backends_.refusals.pop_front();
  }
  ~FakeSession() override { backends_.sessions.erase(backend_); }
  FakeSession(const FakeSession&) = delete;
  FakeSession& operator=(const FakeSession&) = delete;

  State poll() override {
    if (state_ == State::kBroken || state_ == State::kIdle || backends_.clock.steady() < until_) return state_;
    const bool connecting = std::exchange(state_, State::kIdle) == State::kConnecting;
    error_ = std::exchange(pending_, std::nullopt);
    if (connecting && error_) state_ = State::kBroken;
    finish();
    return state_;
  }
  const std::optional<Error>& error() const override { return error_; }
  int backend() const override { return backend_; }
  Socket socket() const override { return {backend_, false}; }
  void run(const LeasedCall& call) override {
    EXPECT_EQ(state_, State::kIdle) << "a call for a session that is not idle";
    messages_.resize(call.parameter->size() / sizeof(Uuid));
    std::memcpy(messages_.data(), call.parameter->data(), call.parameter->size());
    backends_.calls.push_back(messages_);
    breaks_ = stubborn_ = false;
    state_ = State::kBusy;
    until_ = backends_.clock.steady();
    for (const Uuid& id : messages_) {
      Row* row = backends_.table.find(id);
      if (row == nullptr) continue;
      expect_may_run(*row);
      until_ += row->script.cost;
      breaks_ = breaks_ || row->attempts <= row->script.breaks;
      stubborn_ = stubborn_ || row->script.stubborn;
      const auto error = row->error_of_call(row->attempts, messages_.size() > 1, backends_.clock);
      if (error && (!pending_ || error->is_conflict())) pending_ = error;
    }
    const auto running =
        std::ranges::count_if(backends_.sessions, [](const auto& one) { return one.second->is_running(); });
    backends_.most_running = std::max(backends_.most_running, running);
  }
  void clean() override {
    EXPECT_EQ(state_, State::kIdle);
    if (backends_.cleans_badly) pending_ = Error("XX000", "cannot discard");
    state_ = State::kBusy;
    until_ = backends_.clock.steady() + backends_.clean_takes;
  }

  void cancel() {
    if (!is_running() || stubborn_) return;
    pending_ = Error("57014", "canceling statement due to user request");
    until_ = backends_.clock.steady();
  }
  void lose(const Error& error) {
    state_ = State::kBroken;
    messages_.clear();
    error_ = error;
  }
  bool is_running() const { return state_ == State::kBusy && !messages_.empty(); }
  // When its socket ends a wait, by the steady clock.
  Micros next_event() const { return state_ == State::kBroken ? 0 : state_ == State::kIdle ? kNever : until_; }

 private:
  void expect_may_run(const Row& row) const {
    EXPECT_FALSE(backends_.table.is_open) << "a handler runs before its lease is committed";
    EXPECT_GT(row.lease, 0) << "a handler runs without a lease";
    EXPECT_TRUE(backends_.table.is_head(row)) << "seq " << row.seq << " overtakes";
    EXPECT_GT(row.expires_at, backends_.clock.time) << "seq " << row.seq << " has expired";
    EXPECT_LE(row.attempts, row.retries + 1) << "seq " << row.seq << " has no attempt left";
    for (const auto& [backend, other] : backends_.sessions) {
      if (other == this || !other->is_running()) continue;
      for (const Uuid& id : other->messages_) {
        const Row* running = backends_.table.find(id);
        EXPECT_NE(id, row.id) << "seq " << row.seq << " runs twice at once";
        EXPECT_FALSE(running != nullptr && running->shares_order(row)) << "two of an ordered channel at once";
      }
    }
  }

  // The handler's own transaction ends; a snooze is settled in it.
  void finish() {
    const std::vector<Uuid> messages = std::exchange(messages_, {});
    if (std::exchange(breaks_, false)) {
      state_ = State::kBroken;
      error_ = Error("08006", "server closed the connection unexpectedly");
    }
    if (error_) return;
    for (const Uuid& id : messages) {
      ++backends_.finished[id];
      Row* row = backends_.table.find(id);
      if (row == nullptr || row->lease == 0 || row->script.snoozes == 0) continue;
      --row->script.snoozes;
      row->lease = 0;
      row->attempt_at = std::min(backends_.clock.time + kSnooze, row->expires_at);
      --row->attempts;
      ++row->attempts_left;
    }
  }

  Backends& backends_;
  const int backend_;
  State state_ = State::kConnecting;
  Micros until_;  // steady time at which it connects, or its statement ends
  std::vector<Uuid> messages_;
  bool breaks_ = false;
  bool stubborn_ = false;
  std::optional<Error> pending_;  // of the connection or statement that has not ended yet
  std::optional<Error> error_;
};

}  // namespace mq::fake
