// A server in memory: the ports of the core over a table, a clock that moves only when it is told
// to or a handler takes its time, and handlers that do as the script of their message says.
//
// Several sessions may share a Table; each has a transaction, and passes over what the transactions
// of the others have locked. What every user of the ports has to observe is checked as it goes: a
// second begin, a message that is settled twice, an effect without its removal, a message that
// starts before an earlier one of its ordered channel is done. Each fails the test that runs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ports.hpp"
#include "worker.hpp"

namespace mq::fake {

inline constexpr int kAlways = std::numeric_limits<int>::max();
inline constexpr Micros kMillisecond = kSecond / 1000;
inline constexpr Micros kSnooze = 7 * kSecond;  // how long a message that is snoozed sleeps

// What the handler of a message does. Counted in attempts, a message fails the same way however
// often a batch of it is called again in halves.
struct Script {
  int conflicts = 0;              // so many calls in all end in a serialization failure
  int failures = 0;               // so many attempts end in an error
  int failures_at_commit = 0;     // so many attempts are refused by a deferred constraint
  bool fails_in_company = false;  // a batch of more than this one
  bool collides = false;          // with what any other call has left in the transaction: 42P07
  int snoozes = 0;                // so often it wants to come again later, when it does not fail
  bool discards = false;          // it wants to be dead, when it does not fail
  bool changes_others = false;    // it changes messages that may be claimed with it
  double flaky = 0;               // chance that a call fails, whatever was before
  Micros cost = 0;
  bool stubborn = false;           // leased: it does not heed a cancel
  int breaks = 0;                  // leased: so many attempts end with the session, without a word
  std::string sqlstate = "P0001";  // of its failures
  std::string sqlstate_at_commit = "23503";
};

struct Message {
  std::string channel_name = "c";
  std::string channel_args = {};
  std::string name = "n";
  bool ordered = false;
  int retries = 4;
  Micros retry_backoff = kSecond;
  Micros delay = 0;
  Micros expires = kNever;  // that long after it was sent
  bool uncommitted = false;
  bool has_payload = true;
  Script script = {};
};

struct Row : Message {
  Uuid id;
  std::int64_t channel_key = 0;
  std::int64_t place = 0;
  Micros attempt_at = 0;
  Micros expires_at = kNever;
  int attempts = 0;
  int attempts_left = 0;
  bool blocks = false;     // dead, and its channel waits
  std::int64_t lease = 0;  // of a leased handler that runs
};

struct Dead {
  Uuid id;
  std::string reason;
  std::string sqlstate;
  int attempts = 0;
};

struct FailedAttempt {
  Uuid id;
  std::string channel_name;
  std::string channel_args;
  std::string name;
  int attempt = 0;
  std::string sqlstate;
  Micros duration = 0;
  bool crash = false;
};

class FakeClock final : public Clock {
 public:
  explicit FakeClock(std::uint64_t seed = 1) : random_(seed) {}
  Micros now() override { return time; }
  Micros steady() override { return time - set_by; }
  double dice() override;

  Micros time = 800'000'000 * kSecond;
  Micros set_by = 0;  // somebody has changed `time` by so much in all
  void set(Micros by) { time += by, set_by += by; }
  std::deque<double> dices;  // thrown before the random ones

 private:
  std::mt19937_64 random_;
};

class FakeTransaction;

// What is committed, and who has locked what.
class Table {
 public:
  using ChannelId = std::pair<std::string, std::string>;

  explicit Table(FakeClock& clock) : clock_(clock) {}

  Uuid send(const Message& message);
  // Several alike, in order.
  std::vector<Uuid> send(int count, const Message& message);

  Row* find(const Uuid& id);
  bool is_head(const Row& row) const;
  // Whether an earlier message of the row's ordered channel is in the table, but those in `done`.
  bool is_behind_another(const Row& row, const std::set<Uuid>& done) const;
  bool is_locked_by_another(const Row& row, const FakeTransaction& transaction) const;
  std::optional<Micros> next_due(const Registry& registry, bool leased = true) const;
  // When the next message has to be buried since it expires; what has a lease, when that ends.
  std::optional<Micros> next_expiry() const;
  // Moves it to the dead letters. `block`: its row stays behind, if it is ordered.
  void bury(const Uuid& id, const std::string& reason, const std::string& sqlstate, bool charged, bool block);
  void erase(const Uuid& id);
  void clear();
  bool lease_is_alive(std::int64_t token) const;

  int handled(const Uuid& id) const;  // how often its effects were committed
  int died(const Uuid& id) const;
  int failed(const Uuid& id) const;

  std::map<std::int64_t, Row> rows;  // by place
  std::map<ChannelId, std::set<std::int64_t>> ordered;
  std::map<Uuid, std::int64_t> places;
  std::map<Uuid, const FakeTransaction*> locks;
  std::map<Uuid, int> conflicts;  // so far
  std::map<Uuid, int> snoozes;    // so far
  std::vector<Uuid> effects;      // of handled messages
  std::vector<Uuid> kept;         // effects of messages that were snoozed or discarded
  std::vector<Dead> dead;
  std::vector<FailedAttempt> failures;
  std::vector<Uuid> expired;
  struct Lease {
    std::int64_t token;
    std::string channel_name;
  };
  std::map<int, Lease> leases;  // that are alive, by their numbers
  int last_lease = 0;
  std::int64_t last_token = 0;
  bool hash_collides = false;  // every channel has the same key
  // Whether a dead message of this row blocks its channel, as its handler was registered.
  std::function<bool(const Row&)> blocks_as_registered = [](const Row&) { return false; };

 private:
  FakeClock& clock_;
  std::int64_t last_place_ = 0;
};

class FakeTransaction final : public Transaction {
 public:
  FakeTransaction(Table& table, FakeClock& clock) : table_(table), clock_(clock) {}
  ~FakeTransaction() override { unlock(); }

  void begin() override;
  void commit() override;
  void rollback() override;
  void set_savepoint() override;
  void release_savepoint() override;
  void rollback_to_savepoint() override;

  // For the ports beside it.
  const Row& lock(const Row& row);  // a copy that lives until the next claim or the end
  void forget_copies() { copies_.clear(); }
  struct EffectOptions {
    std::string refused_at_commit = {};  // with this sqlstate
    bool stops_channel = false;
  };
  void add_effect(const Uuid& id, const EffectOptions& options);
  std::set<Uuid> done() const;  // that others of their channels may follow
  void settle(const Settlement& settlement);
  void at_commit(std::function<void()> change) { changes_.push_back(std::move(change)); }
  bool is_open() const { return open_; }
  bool has_savepoint() const { return savepoint_.has_value(); }

  std::vector<Uuid> effects;   // written, not committed
  int released = 0;            // savepoints of this transaction
  std::deque<Error> refusals;  // the next commits fail with these

  struct Record {
    int released;
    std::size_t claimed;
    std::size_t handled;
    Micros took;
    bool committed;
  };
  std::vector<Record> history;  // of transactions that claimed something

 private:
  void end(bool committed);
  void unlock();

  Table& table_;
  FakeClock& clock_;
  bool open_ = false;
  bool settled_ = false;
  std::set<Uuid> settled_messages_;
  Micros began_at_ = 0;
  std::optional<std::size_t> savepoint_;
  std::map<Uuid, EffectOptions> options_;  // of effects
  std::vector<std::function<void()>> changes_;
  std::set<Uuid> settled_effects_;
  std::size_t claimed_ = 0;
  std::list<Row> copies_;
};

class FakeQueue final : public ClaimSource, public Settler {
 public:
  FakeQueue(Table& table, FakeTransaction& transaction) : table_(table), transaction_(transaction) {}

  void begin(std::span<const std::string_view>) override {
    ++claims;
    transaction_.forget_copies();
  }
  void oldest(std::string_view channel_name, Micros now, std::optional<Position> after, int limit,
              Batch& batch) override;
  void fair(std::string_view channel_name, Micros now, std::int64_t start, int limit, Batch& batch) override;
  void runs(std::span<const Claimed> heads, Micros now, int limit, Batch& batch) override;
  void named(std::span<const Uuid> ids, Batch& batch, std::vector<int>& crashes) override;
  bool is_pending(const Uuid& id) override { return table_.find(id) != nullptr; }
  void again(std::span<const Uuid> ids, Micros now, Batch& batch) override;
  bool is_due(std::string_view channel_name, Micros now) override;
  bool take_place(std::string_view channel_name, int most) override;
  void release_place(std::string_view channel_name) override { released.emplace_back(channel_name); }
  void settle(const Settlement& settlement) override;
  void append(const Row& row, Batch& batch);

  int claims = 0;
  int scans = 0;                                         // calls of oldest
  int draws = 0;                                         // calls of fair
  std::deque<Error> claim_errors;                        // the next claims fail with these
  std::deque<Error> settle_errors;                       // the next settlements fail with these
  std::map<std::string, int, std::less<>> places_taken;  // by other workers
  std::vector<std::string> taken;                        // places, by channel name
  std::vector<std::string> released;
  std::function<void()> on_again;  // run before messages are claimed again
  std::set<Uuid> unsettleable;     // what a settlement of these fails with is 23514, unless it puts them off

 private:
  void fail_if_told();
  std::vector<const Row*> due_heads(std::string_view channel_name, Micros now) const;

  Table& table_;
  FakeTransaction& transaction_;
};

class FakeHandlers final : public HandlerCaller {
 public:
  FakeHandlers(Table& table, FakeTransaction& transaction, FakeClock& clock)
      : table_(table), transaction_(transaction), clock_(clock) {}

  void call(const Handler& handler, std::span<const Claimed* const> messages, bool yields) override;
  std::vector<Wish> wishes() override { return std::exchange(wishes_, {}); }
  bool has_changed(std::span<const Claimed> messages) override { return changed_ && !messages.empty(); }
  bool hurry() override { return static_cast<int>(calls.size()) >= hurry_after; }

  int calls_of(const Uuid& id) const;

  std::vector<std::vector<Uuid>> calls;
  std::vector<std::string> functions;  // that were called
  Micros patience = kNever;            // a call that lasts longer while others wait behind it is stopped
  bool in_conflict = false;            // what it waits for then
  int hurry_after = kAlways;           // calls
  std::function<void()> during;        // run inside each call

 private:
  Table& table_;
  FakeTransaction& transaction_;
  FakeClock& clock_;
  std::vector<Wish> wishes_;
  bool changed_ = false;
};

class FakeHost final : public Host {
 public:
  FakeHost(Table& table, FakeClock& clock) : table_(table), clock_(clock) {}

  bool refresh(Registry& registry) override;
  bool is_outdated() override { return outdated && std::exchange(outdated, nullptr)(); }
  bool any_casualty() override { return !ended_calls.empty(); }
  std::vector<Casualty> casualties() override {
    for (std::size_t i = 0; i < ended_calls.size(); ++i) ended_calls[i].number = static_cast<int>(i);
    return ended_calls;
  }
  void casualties_settled(const std::vector<int>& numbers) override {
    std::erase_if(ended_calls, [&](const Casualty& casualty) {
      return std::find(numbers.begin(), numbers.end(), casualty.number) != numbers.end();
    });
  }
  Next next(const Registry& registry, bool leased) override {
    return {table_.next_due(registry, leased), table_.next_expiry()};
  }
  bool expire() override;
  bool wake_unhandled() override;
  Swept sweep() override;
  bool wait(Micros most) override;
  void watch(std::vector<Socket> sockets) override { watched = std::move(sockets); }
  bool wait_to_leave(Micros most) override;
  void give_place_up() override { ++places_given_up; }
  bool has_place() override { return gets_place && gets_place(); }
  bool should_drain() override { return drains; }
  bool should_leave(Micros idle_for) override { return idle_for >= leave_when_idle_for; }
  void backlog(bool more_is_due) override { backlogs.push_back(more_is_due); }
  void report(std::string_view activity) override { reports.emplace_back(activity); }
  void handled(std::size_t messages) override { told_handled += messages; }
  void warn(const Error& error) override { warnings.push_back(error); }
  bool pause(Micros most) override {
    pauses.push_back(most);
    return wait(most);
  }
  void put_off(const Uuid& message, std::string_view, const Error&, Micros) override { ++delays[message]; }
  std::optional<Limits> limits(std::string_view channel_name) override {
    const auto found = limited.find(channel_name);
    return found == limited.end() ? std::nullopt : std::optional(found->second);
  }
  void conflict(std::string_view channel_name, Micros, int) override { conflicts.emplace_back(channel_name); }
  Micros poll_interval() override { return interval; }
  int batch_size() override { return batch_limit; }

  // Handlers of the channel name: for one message name, or for every name.
  Handler& add_handler(const std::string& channel_name, Shape shape = Shape::kJson,
                       std::optional<std::string> message_name = std::nullopt);

  std::deque<Handler> handlers;
  std::map<std::string, std::string> parked;
  bool changed = true;          // handlers or parked
  int installed_for = kAlways;  // refreshes
  int batch_limit = 500;
  Micros interval = 5 * kSecond;
  Micros leave_when_idle_for = std::numeric_limits<Micros>::max();
  int patience = 100'000;           // waits; the test has failed when they are over
  std::function<bool()> wants_end;  // asked in each wait; by default: nothing is due at any time
  std::function<bool()> on_sweep;
  std::optional<Error> sweep_failure;  // of each sweep
  std::vector<Socket> watched;
  // When a wait for these sockets ends.
  std::function<Micros(const std::vector<Socket>&)> ready_at = [](const auto&) { return kNever; };
  bool may_wait_to_leave = true;
  std::function<bool()> gets_place;  // again, having given it up; by default it does not
  bool drains = false;
  std::function<bool()> outdated;  // asked once, after a claim
  int places_given_up = 0;
  std::vector<Casualty> ended_calls;

  int sweeps = 0;
  int expire_steps = 0;
  std::vector<Micros> waits;
  std::vector<bool> backlogs;
  std::vector<std::string> reports;
  std::vector<Error> warnings;
  std::vector<Micros> pauses;
  std::map<Uuid, int> delays;  // of messages that could not be settled
  std::map<std::string, Limits, std::less<>> limited;
  std::vector<std::string> conflicts;
  std::size_t told_handled = 0;

 private:
  Table& table_;
  FakeClock& clock_;
  void pass(Micros most);

  const Registry* seen_ = nullptr;
};

struct Session {
  Session(Table& table, FakeClock& clock_of_all)
      : clock(clock_of_all),
        transaction(table, clock),
        queue(table, transaction),
        caller(table, transaction, clock),
        host(table, clock) {}

  Worker::Ports ports() { return {host, clock, transaction, queue, caller, queue}; }

  FakeClock& clock;
  FakeTransaction transaction;
  FakeQueue queue;
  FakeHandlers caller;
  FakeHost host;
};

}  // namespace mq::fake
