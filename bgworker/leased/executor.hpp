// Leased handlers: each call runs in a session of its own. Worker (worker/loop.cpp) looks after
// several calls at once, between its batches; mq_run runs one at a time in its own session.
//
//   connecting ──▶ idle ── lease, commit ──▶ running ── settle, commit ──▶ cleaning ──▶ idle
//
// 1. A session connects before messages are claimed for it: a refused connection charges none.
// 2. A lease is a token in the message's row that no other lease ever has. It charges the attempt.
// 3. Settling, renewing and giving back find rows by the token: a lost lease changes nothing.
// 4. In a worker nothing here waits for a session.
// 5. At its time limit a call is cancelled. If it goes on, its session is terminated after another
//    time limit (at least one second, at most 30).
//
// LeasedHandlers is state of this process only. The rows are under row locks; what other processes
// see of a call is in shared memory (shmem/leased_calls.cpp).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "handlers/registry.hpp"
#include "leased/handler_session.hpp"
#include "pg/clock.hpp"
#include "pg/transaction.hpp"
#include "pg/trouble.hpp"
#include "queue/claim.hpp"
#include "queue/settlement.hpp"
#include "shmem/aborted_call.hpp"

namespace mq {

inline constexpr Micros kLease = 30 * kSecond;          // renewed when half of it is over
inline constexpr Micros kSessionLingers = 5 * kSecond;  // an idle session is kept so long
inline constexpr Micros kPutOff = 60 * kSecond;         // of what cannot be settled

// LeaseStore: the server as only leased handlers need it. SqlLeaseStore implements it for workers,
// LocalLeaseStore for mq_run. Its statements run in the current transaction.
class LeaseStore {
 public:
  virtual ~LeaseStore() = default;

  // Whether messages are handled in this database. If so, no restore commits before the current
  // transaction ends. Asked in each transaction that claims, settles or charges.
  virtual bool works() = 0;
  // Up to `limit` due messages, as Claimer claims them (queue/claim.hpp), without followers.
  virtual Claim claim(const std::vector<Source>& sources, int limit) = 0;
  // Locks the messages with these ids, and appends them to the batch; see find_named().
  virtual void find(std::span<const Uuid> ids, Batch& batch) = 0;
  virtual void settle(const Settlement& settlement) = 0;
  // Whether settle() failed because other sessions have locked rows that it should remove.
  virtual bool was_held(const Error& /* error */) { return false; }

  // How many sessions this worker may have, those that connect included.
  virtual int most_sessions() = 0;
  // Begins to open a session, while this worker is opening `connecting` others. nullptr: not now.
  // Throws 53300 if the server would refuse it, or has only connections that are left to others;
  // in mq_run 42501 if the current user cannot become the session user.
  virtual std::unique_ptr<HandlerSession> open(int connecting) = 0;
  // Whether the server is shutting down. Then no call begins, and idle sessions are closed.
  virtual bool is_stopping() { return false; }
  virtual void note_connecting(int /* sessions */) {}
  // Whether the process is a session of this server, database and role. No other is cancelled.
  virtual bool is_ours(int backend) = 0;
  virtual void cancel(int backend) = 0;
  virtual void terminate(int backend) = 0;
  // Notes for mq_health() that a message could not be settled and is due again at `until`.
  virtual void put_off(const Uuid& /* message */, std::string_view /* channel_name */, const Error& /* why */,
                       Micros /* until */) {}
  virtual void warn(const Error& /* error */) {}
  // False in mq_run, which throws every error to its caller.
  virtual bool is_background() { return true; }
  // Notes for mq_health() how the last attempt to open a session ended. None: it succeeded.
  virtual void note_connection(const std::optional<Error>& refusal) = 0;

  // How many leased calls run on the channel name in this database, of all workers and mq_run.
  virtual int running_on(std::string_view channel_name) = 0;
  // How many heads of the channel name are due, at most `limit`. Takes no row locks.
  virtual int due(std::string_view channel_name, Micros now, int limit) = 0;

  struct Entry {
    std::int64_t token;
    int backend;  // process id of its session
    const Handler& handler;
    const Claimed& first;  // its first message
    int concurrency;       // how many other calls of this worker run beside it
  };
  // Enters a call in shared memory before it runs. Until leave() its lease is alive, even if its
  // end has passed, and its session can look it up. In a worker it also gets an in-flight record,
  // which survives a crash of the server. Returns the call's number. -1: it must not begin, since
  // max_workers calls run on its channel name, or calls of the role must run exclusively and one
  // runs, or shared memory has no room.
  virtual int enter(const Entry& entry) = 0;
  // How many of these messages the call may have, from the first on: the rate of their channel name may let
  // it have no more now. Those count as begun.
  virtual std::size_t may_begin(std::span<const Claimed* const> messages) { return messages.size(); }
  // Notes whether this worker's calls must run exclusively. While they must, a leased call of this
  // role begins only if no other runs.
  virtual void note_exclusive(bool /* alone */) {}
  virtual Micros lease_length(const Handler& /* handler */) { return kLease; }
  // The call is over: its lease, if it still has one, is not alive any more.
  virtual void leave(int number) = 0;
  // Whether mq_cancel has cancelled a message of the call. Its session has been sent the cancel then.
  virtual bool is_cancelled(int /* number */) { return false; }
  // Whether the session of the call was told to end: by the postmaster's SIGTERM, or by SIGQUIT or
  // a crash signal from another process (kTold in shmem/in_flight.hpp).
  virtual bool was_told(int /* number */) { return false; }

  virtual std::int64_t new_token() = 0;
  // Charges each of these messages an attempt, and leases it. The caller has locked them. Throws
  // 27000 if a trigger, rule or policy keeps a row as it is.
  virtual void lease(const std::vector<const Claimed*>& messages, std::int64_t token, Micros until) = 0;
  virtual void renew(const std::vector<std::int64_t>& tokens, Micros until) = 0;
  // Locks the messages that are still leased with the token, and appends them to `batch` as they
  // were before the attempt was charged. False: other sessions have locked some of them.
  virtual bool reclaim(std::int64_t token, Batch& batch) = 0;
  // The tokens, among `limit` leases, of those that are neither alive nor of aborted calls.
  virtual std::vector<std::int64_t> orphans(std::size_t limit) = 0;
  // What a call returned (jsonb as text) for each of its messages. The values live to the end of the current
  // transaction. Throws 22023 where it is not what the shape asks for.
  virtual std::vector<const void*> results_of(const std::string& /* result */, Shape /* shape */,
                                              std::size_t /* messages */) {
    return {};
  }
  // The statement that calls the handler with these messages. Throws if they cannot be sent.
  virtual LeasedCall call_of(const Handler& handler, const std::vector<const Claimed*>& messages) = 0;
};

class LeasedHandlers {
 public:
  struct Ports {
    Clock& clock;
    Transaction& transaction;
    LeaseStore& store;
  };

  explicit LeasedHandlers(const Ports& ports) : ports_(ports) {}

  struct Turn {
    bool moved = false;                 // another turn may find more to do at once
    bool more_is_due = false;           // more is due than this worker has sessions for
    std::size_t handled = 0;            // messages
    std::optional<Error> failure = {};  // of settling a call, which is tried again
  };
  // The calls that a turn may begin.
  struct Scope {
    const std::vector<std::string_view>* only = nullptr;  // channel names; nullptr: all
    std::int64_t most = std::numeric_limits<int>::max();  // how many messages
    bool drain = false;                                   // begin nothing, and close idle sessions
  };
  // Looks after the calls that run, settles those that have ended, and begins calls for messages
  // that are due. Throws what the server throws; the caller rolls back.
  Turn turn(const Registry& registry, const Scope& scope);
  // Charges a leased call that was aborted, in the current transaction. `crashes` are proven
  // already for its message. As many calls as ran together then run exclusively, one after another.
  // False: other sessions have locked some of its messages.
  bool charge_crash(const AbortedCall& aborted_call, int crashes, const Registry& registry);
  // Makes messages of orphaned leases due again, uncharged, in the current transaction.
  void release_orphans(const Registry& registry);

  bool busy() const;                                    // calls run, or are to be settled
  bool has_sessions() const { return !runs_.empty(); }  // busy or not
  // Whether a call could begin, or a session be opened, for a message that becomes due.
  bool can_begin() const;
  // How long the worker may wait for the next turn; none: without limit.
  std::optional<Micros> next_turn() const;
  // The sockets that should end that wait.
  std::vector<Socket> sockets() const;

 private:
  // A session, and the call that runs in it.
  struct Run {
    std::unique_ptr<HandlerSession> session;
    enum State { kConnecting, kIdle, kRunning, kEnded, kCleaning, kBroken } state = kConnecting;
    Micros since = 0;  // when this state began; all moments of a Run are of the steady clock
    // From kRunning to kEnded these describe the call.
    int number = -1;  // from LeaseStore::enter(); -1: no call
    std::int64_t token = 0;
    std::vector<Uuid> messages;  // their ids, in the order of the call
    Handler handler;
    Micros renew_at = 0;
    Micros stop_at = 0;  // when to cancel it, then to terminate its session; 0: never
    enum Stop { kNot, kCancelled, kTerminated } stop = kNot;
    std::optional<Error> error;
    bool cancelled = false;  // by mq_cancel
    bool give_back = false;  // no message is charged for the error
    Micros started = 0;      // wall clock
    Micros duration = 0;
    std::optional<std::string> result;
    Micros waited = 0;     // how long its first message was due before the claim
    Micros settle_at = 0;  // not before
    Backoff trouble;       // counts failed attempts to settle it
  };
  static constexpr std::size_t kMostAtOnce = 1024;
  struct Call {
    const Handler* handler;
    std::vector<const Claimed*> messages;
  };
  // A call that could not be made into a statement.
  struct Unsent {
    std::vector<std::pair<Uuid, int>> messages;  // with their attempts before this one
    Handler handler;
    Error error;
  };

  bool poll(Run& run, Micros now);
  void enter_state(Run& run, Run::State state, Micros now);
  void connection_ended(Run& run, Micros now);
  void stop(Run& run, Micros now);
  void renew(Micros now);
  void end(Run& run, bool broken, Micros now);
  bool settle(Run& run, Micros now);  // false: it has to be tried again
  void finish(Run& run, Micros now);
  bool try_to_settle(Run& run, Micros now);
  void unsettled(Run& run, const Error& error, Micros now);
  void run_exclusive(int calls);
  void settle_failed(const Run& run, const Batch& batch, Micros now, Settlement& settlement);
  std::vector<Source> sources(const Registry& registry, const Scope& scope, std::size_t idle);
  bool begin(const Registry& registry, const Scope& scope, Turn& turn);
  LeasedCall statement_of(const Call& call, std::optional<Unsent>& unsent);
  void fail(const Unsent& unsent);
  void put_off(const std::vector<Uuid>& ids, const Error& error);
  std::vector<Call> calls_of(const Registry& registry, const Batch& messages, Settlement& settlement);
  void told_of_room(const std::optional<Error>& refusal);
  void open_sessions(const Registry& registry, const Scope& scope, Turn& turn, Micros now);
  std::size_t count(Run::State state) const;
  std::size_t most_sessions();

  Ports ports_;
  std::vector<std::unique_ptr<Run>> runs_;
  Micros refused_until_ = 0;  // no session is opened before; steady clock
  Micros refused_at_ = 0;     // when the last connection was refused; steady clock
  int refusals_ = 0;          // in a row; connections that were refused together count once
  // How many connections may be opened at once: one after a refusal, doubled by each that succeeds.
  std::size_t at_once_ = kMostAtOnce;
  bool no_room_ = false;  // mq_health() was told that another session is wanted and refused
  bool stopping_ = false;
  int exclusive_ = 0;             // so many calls have still to run exclusively
  std::optional<Error> failure_;  // the last error of settling in this turn
  // Messages of batch calls that failed or were aborted: they are called one by one.
  std::unordered_set<Uuid, UuidHash> single_;
  std::unordered_map<Uuid, int, UuidHash> conflicts_;  // how many in a row, by message
};

}  // namespace mq
