// Sessions that leased handlers run in, and what workers share about leases: over the fake table, in the fake time.
//
// A handler's call takes as long and ends as the scripts of its messages say. What every session has to observe is
// checked as it goes: nothing runs whose lease is not committed, nor two messages of one ordered channel at once, nor
// one that has no attempt left; nobody waits for a socket that is closed.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "fake_server.hpp"
#include "leased.hpp"

namespace mq::fake {

class FakeSession;

// The server's side of all sessions.
struct Backends {
  Backends(Table& the_table, FakeClock& the_clock) : table(the_table), clock(the_clock) {}

  FakeSession* find(int backend);
  // When one of the sockets ends a wait.
  Micros ready_at(const std::vector<Socket>& sockets);

  Table& table;
  FakeClock& clock;
  std::map<int, FakeSession*> sessions;  // by process id, which is their descriptor, too
  Micros connect_takes = 0;
  Micros clean_takes = 0;
  std::deque<Error> refusals;  // of the next connections
  std::optional<Error> refuses_all;
  std::size_t most_sessions = 1000;  // those beyond are refused
  bool another_server = false;
  bool cleans_badly = false;
  int last_backend = 100;

  int opened = 0;
  int most_running = 0;
  int cancels = 0;
  int terminations = 0;
  std::vector<std::vector<Uuid>> calls;
  std::map<Uuid, int> finished;  // calls that ended well
};

class FakeSession final : public HandlerSession {
 public:
  explicit FakeSession(Backends& backends);
  ~FakeSession() override;
  FakeSession(const FakeSession&) = delete;
  FakeSession& operator=(const FakeSession&) = delete;

  State poll() override;
  const std::optional<Error>& error() const override { return error_; }
  int backend() const override { return backend_; }
  Socket socket() const override { return {backend_, false}; }
  void run(const LeasedCall& call) override;
  void clean() override;

  void cancel();
  void lose(const Error& error);
  bool is_running() const { return state_ == State::kBusy && !messages_.empty(); }
  const std::vector<Uuid>& messages() const { return messages_; }
  Micros next_event() const;

 private:
  void finish();
  std::optional<Error> outcome();

  Backends& backends_;
  const int backend_;
  State state_ = State::kConnecting;
  Micros until_;
  std::vector<Uuid> messages_;
  bool breaks_ = false;
  bool stubborn_ = false;
  std::optional<Error> pending_;  // what the wait ends with
  std::optional<Error> error_;
};

class FakeLeaseStore final : public LeaseStore {
 public:
  FakeLeaseStore(Backends& backends, Session& session) : backends_(backends), session_(session) {}
  ~FakeLeaseStore() override { abandon(); }
  FakeLeaseStore(const FakeLeaseStore&) = delete;
  FakeLeaseStore& operator=(const FakeLeaseStore&) = delete;

  int most_sessions() override { return sessions; }
  std::unique_ptr<HandlerSession> open(int connecting) override;
  bool is_ours(int backend) override;
  void cancel(int backend) override;
  void terminate(int backend) override;
  void warn(const Error& error) override { session_.host.warn(error); }
  void note_connection(const std::optional<Error>& refusal) override { connections.push_back(refusal); }
  int running_on(std::string_view channel_name) override;
  int due(std::string_view channel_name, Micros now, int limit) override;
  int enter(const Entry& entry) override;
  void leave(int number) override;
  bool was_told(int /* number */) override { return told; }
  std::int64_t new_token() override;
  void lease(const std::vector<const Claimed*>& messages, std::int64_t token, Micros until) override;
  void renew(const std::vector<std::int64_t>& tokens, Micros until) override;
  bool reclaim(std::int64_t token, Batch& batch) override;
  std::vector<std::int64_t> orphans(std::size_t limit) override;
  LeasedCall call_of(const Handler& handler, const std::vector<const Claimed*>& messages) override;

  void abandon();  // the worker has ended

  int sessions = 4;
  bool told = false;               // sessions, by the server, to go
  bool room = true;                // for another session
  std::deque<Error> lease_errors;  // the next leases fail with these
  std::deque<Error> renew_errors;  // the next renewals fail with these
  std::set<Uuid> unspeakable;      // messages that no statement can be made of
  std::function<void()> on_begin;  // once, when the first lease is about to be written
  std::vector<std::optional<Error>> connections;
  std::vector<Micros> renewals;  // when
  std::vector<int> companies;    // of the calls

 private:
  Backends& backends_;
  Session& session_;
  std::set<int> mine_;  // numbers of leases
};

}  // namespace mq::fake
