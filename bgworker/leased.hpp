// Leased handlers: each call runs in a session of its own, and the worker looks after several at once between its
// batches. Nothing here waits.
//
//   connecting ──▶ idle ── lease, commit ──▶ running ── settle, commit ──▶ cleaning ──▶ idle
//
// A session comes before the claim, so that a connection that is refused charges nobody. A lease is a message's row
// with a token in it that no other lease ever has: whoever settles, renews or gives back asks for the token, and finds
// nothing where the lease was lost. The attempt is charged with the lease.
//
// At its time limit a call is cancelled; if it goes on, its session is terminated after as long again (at least a
// second, at most thirty).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "claim.hpp"
#include "handler_session.hpp"
#include "ports.hpp"
#include "trouble.hpp"

namespace mq {

inline constexpr Micros kLease = 30 * kSecond;          // renewed when half of it is over
inline constexpr Micros kSessionLingers = 5 * kSecond;  // an idle one
inline constexpr Micros kPutOff = 60 * kSecond;         // a message that cannot be settled

// What leased handlers ask of the server beyond what all do. Statements run in the current transaction.
class LeaseStore {
 public:
  virtual ~LeaseStore() = default;

  // Most sessions of this worker.
  virtual int most_sessions() = 0;
  // Begins to open one. nullptr: the process has no room for another. Throws 53300 when the server has none left but
  // for others; `connecting` are being opened by this worker.
  virtual std::unique_ptr<HandlerSession> open(int connecting) = 0;
  // Whether the server is shutting down: sessions that are idle should go, and no call begin.
  virtual bool is_stopping() { return false; }
  virtual void note_connecting(int /* sessions */) {}
  // Whether the process is a session of this server, database and role: what is cancelled has to be ours.
  virtual bool is_ours(int backend) = 0;
  virtual void cancel(int backend) = 0;
  virtual void terminate(int backend) = 0;
  // A message that cannot be settled is put off until then.
  virtual void put_off(const Uuid& /* message */, std::string_view /* channel_name */, const Error& /* why */,
                       Micros /* until */) {}
  virtual void warn(const Error& /* error */) {}
  // False in mq_run, whose caller hears of every trouble.
  virtual bool is_background() { return true; }
  // How the last attempt to open a session went, for mq_health().
  virtual void note_connection(const std::optional<Error>& refusal) = 0;

  // How many calls run on the channel name in this database, whoever runs them.
  virtual int running_on(std::string_view channel_name) = 0;
  // Whether anything is due; at most `limit`, and without locks.
  virtual int due(std::string_view channel_name, Micros now, int limit) = 0;

  // A call that is about to run: until leave() its lease is alive even if its end has passed, and what it is called
  // with is known to its session and outlives the server. Returns its number; -1: there is no room for it.
  // `company`: as many calls run beside it.
  struct Entry {
    std::int64_t token;
    int backend;
    const Handler& handler;
    const Claimed& first;
    int messages;
    int company;
  };
  virtual int enter(const Entry& entry) = 0;
  // Whether this worker's calls have to run alone; then the other workers of the role begin none beside them.
  virtual void note_alone(bool /* alone */) {}
  virtual Micros lease_length(const Handler& /* handler */) { return kLease; }
  virtual void leave(int number) = 0;
  // Whether the session of the call was told to go by the server, which stops.
  virtual bool was_told(int /* number */) { return false; }

  virtual std::int64_t new_token() = 0;
  // Charges locked messages an attempt and leases them.
  virtual void lease(const std::vector<const Claimed*>& messages, std::int64_t token, Micros until) = 0;
  virtual void renew(const std::vector<std::int64_t>& tokens, Micros until) = 0;
  // Locks what is still leased with the token, and returns it as it was before the attempt was charged. False: some of
  // it is locked by somebody.
  virtual bool reclaim(std::int64_t token, Batch& batch) = 0;
  // Tokens of leases that nobody holds any more, and that are not among the casualties.
  virtual std::vector<std::int64_t> orphans(std::size_t limit) = 0;
  virtual LeasedCall call_of(const Handler& handler, const std::vector<const Claimed*>& messages) = 0;
};

class LeasedHandlers {
 public:
  struct Ports {
    Clock& clock;
    Transaction& transaction;
    ClaimSource& source;
    Settler& settler;
    LeaseStore& store;
  };

  explicit LeasedHandlers(const Ports& ports) : ports_(ports), claimer_(ports.source, ports.clock) {}

  struct Turn {
    bool moved = false;        // another turn may find more to do at once
    bool more_is_due = false;  // than this worker has sessions for
    std::size_t handled = 0;
    std::optional<Error> failure = {};  // of settling a call, which is tried again
  };
  // What a turn may begin. `only` restricts the channels.
  struct Scope {
    const std::vector<std::string_view>* only = nullptr;
    std::int64_t most = std::numeric_limits<int>::max();  // messages
    bool drain = false;                                   // nothing
  };
  // Looks after what runs, settles what has ended and begins what is due. Throws what the server
  // throws; the caller rolls back.
  Turn turn(const Registry& registry, const Scope& scope);
  // A call that never came to an end, in the current transaction. `crashes` were before. As many as ran together with
  // it run alone now, one after another. False: not now, somebody has it locked.
  bool charge_crash(const Casualty& casualty, int crashes, const Registry& registry);
  // Gives back, uncharged, what was leased to workers and sessions that are gone. In the current transaction.
  void release_orphans(const Registry& registry);

  bool busy() const;                                    // calls run
  bool has_sessions() const { return !runs_.empty(); }  // busy or not
  // Whether a message that becomes due could be begun.
  bool can_begin() const;
  // In how long the next turn is due at the latest; and what else should cause one.
  std::optional<Micros> next_turn() const;
  std::vector<Socket> sockets() const;

 private:
  struct Run {
    std::unique_ptr<HandlerSession> session;
    enum State { kConnecting, kIdle, kRunning, kEnded, kCleaning, kBroken } state = kConnecting;
    Micros since = 0;  // in this state; moments here are the steady clock's
    // The call, from kRunning to kEnded.
    int number = -1;
    std::int64_t token = 0;
    std::size_t messages = 0;
    Handler handler;
    Micros renew_at = 0;
    Micros stop_at = 0;  // 0: never
    enum Stop { kNot, kCancelled, kTerminated } stop = kNot;
    std::optional<Error> error;
    bool give_back = false;  // nobody is to be charged for the error
    Micros duration = 0;
    Micros waited = 0;  // its first message, since it was due
    Micros settle_at = 0;
    Backoff trouble;  // with settling it
  };
  static constexpr std::size_t kMostAtOnce = 1024;
  struct Call {
    const Handler* handler;
    std::vector<const Claimed*> messages;
  };
  struct Unsent {
    std::vector<std::pair<Uuid, int>> messages;  // and the attempts they had made
    Handler handler;
    Error error;
  };

  bool poll(Run& run, Micros now);
  void enter_state(Run& run, Run::State state, Micros now);
  void connection_ended(Run& run, Micros now);
  void stop(Run& run, Micros now);
  void renew(Micros now);
  void end(Run& run, bool broken, Micros now);
  bool settle(Run& run, Micros now);  // false: not yet
  bool try_to_settle(Run& run, Micros now);
  void unsettled(Run& run, const Error& error, Micros now);
  void run_alone(int calls);
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
  Claimer claimer_;
  std::vector<std::unique_ptr<Run>> runs_;
  Micros refused_until_ = 0;
  Micros refused_at_ = 0;  // when the last one was
  int refusals_ = 0;       // in a row
  std::size_t at_once_ =
      kMostAtOnce;        // so many connections are tried: one after a refusal, then twice as many each time
  bool no_room_ = false;  // for another session, as was told
  bool stopping_ = false;
  int alone_ = 0;
  std::optional<Error> failure_;               // of this turn
  std::unordered_set<Uuid, UuidHash> single_;  // of a batch call that failed: called one by one
  std::unordered_map<Uuid, int, UuidHash> conflicts_;
};

}  // namespace mq
