// Ports: what the core asks of the server. server/ implements them over PostgreSQL, tests/unit over a fake
// server and a fake clock. Everything here may throw Error; after that the caller rolls back.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"
#include "handler_session.hpp"
#include "message.hpp"
#include "registry.hpp"

namespace mq {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual Micros now() = 0;
  virtual Micros steady() = 0;  // for durations: nobody sets it
  virtual double dice() = 0;    // a random number in [0, 1)
};

// The transaction that a batch lives in, and the savepoints inside it.
class Transaction {
 public:
  virtual ~Transaction() = default;
  virtual void begin() = 0;
  virtual void commit() = 0;
  virtual void rollback() = 0;
  virtual void set_savepoint() = 0;
  virtual void release_savepoint() = 0;
  virtual void rollback_to_savepoint() = 0;
  // Checks now what is deferred to the commit, where the transaction is ours.
  virtual void check_deferred() {}
};

// Due messages, locked for the transaction; what others have locked is passed over, so nothing here waits.
// Each call appends to `batch`.
class ClaimSource {
 public:
  virtual ~ClaimSource() = default;

  // A claim from these channel names begins: forgets the rows of the one before.
  virtual void begin(std::span<const std::string_view> /* channel_names */) {}

  // The oldest due messages of a channel name, behind `after` if that is given.
  virtual void oldest(std::string_view channel_name, Micros now, std::optional<Position> after, int limit,
                      Batch& batch) = 0;
  // One due message of each of up to `limit` channels of the name, by channel_key from `start` on.
  virtual void fair(std::string_view channel_name, Micros now, std::int64_t start, int limit, Batch& batch) = 0;
  // The messages behind each head in its channel that can be delivered with it, up to `limit` a channel.
  virtual void runs(std::span<const Claimed> heads, Micros now, int limit, Batch& batch) = 0;
  // Messages by their ids, those that are there and not locked; and how many attempts of each are proven to have
  // crashed the server since its last mq_checkpoint.
  virtual void named(std::span<const Uuid> /* ids */, Batch& /* batch */, std::vector<int>& /* crashes */) {}
  // Whether the message is there, locked or not.
  virtual bool is_pending(const Uuid& /* id */) { return false; }
  // Those of the messages that are due, and first in their channels.
  virtual void again(std::span<const Uuid> ids, Micros now, Batch& batch) = 0;
  // Whether the first message of a channel name is due, locked or not.
  virtual bool is_due(std::string_view channel_name, Micros now) = 0;
  // How many first messages of the channel name's channels are due, locked or not; `limit` where there are more.
  virtual int due(std::string_view /* channel_name */, Micros /* now */, int limit) { return limit; }
  // One of the `most` places that workers on a channel may take, held to the end of the transaction or until it is
  // released.
  virtual bool take_place(std::string_view channel_name, int most) = 0;
  virtual void release_place(std::string_view /* channel_name */) {}
};

struct Failure {
  const Claimed* message;
  Error error;
  Micros duration = 0;
  bool crash = false;  // of the server, and proven to be the handler's
};

// A failed attempt that is to be tried again.
struct Retry {
  const Claimed* message;
  Micros attempt_at;
  Micros retry_backoff;
};

struct Burial {
  const Claimed* message;
  std::string reason;
  std::optional<Error> error;
  bool block = false;                // the ordered channel waits until somebody decides
  bool charged = true;               // the attempt that just ended counts
  bool block_as_registered = false;  // `block` is what the message's handler was registered with
};

// A message that its handler wants again later: no attempt counts.
struct Snooze {
  const Claimed* message;
  Micros attempt_at;
};

// A message that its handler has handled: how long it was due before, and how long that took.
struct Handling {
  const Claimed* message;
  Micros waited;
  Micros took;
};

// What happens to the messages of a batch. One call a batch.
struct Settlement {
  std::vector<const Claimed*> removed;  // handled, or expired
  std::vector<Handling> handled;        // to be counted; they are among the removed
  std::vector<Retry> retries;
  std::vector<Snooze> snoozes;
  std::vector<Burial> burials;
  std::vector<Failure> failures;  // attempts to be recorded
  // No handler takes their name: they wait, uncharged, until one is registered that does.
  std::vector<const Claimed*> unhandled;
};

class Settler {
 public:
  virtual ~Settler() = default;
  virtual void settle(const Settlement& settlement) = 0;
  // Whether the error was that others hold rows that were to be removed: the next claim leaves those alone, and nobody
  // is to blame.
  virtual bool was_held(const Error& /* error */) { return false; }
};

// What a handler said about a message that it was called with, if it said anything.
struct Wish {
  enum Kind { kSnooze, kDiscard } kind;
  Uuid id;
  Micros delay = 0;    // of a snooze
  std::string reason;  // of a discard
};

// Thrown for a call that lasted while others waited behind it, or that did what the others of its transaction would
// feel: it was stopped, and is not charged.
struct Yielded {
  bool conflicted;    // it waited for a lock, and so did another worker
  bool felt = false;  // by the others: its channel is to have one call to a transaction
};

class HandlerCaller {
 public:
  virtual ~HandlerCaller() = default;
  // Calls the handler with one message, or a batch handler with several. Throws what the handler raised. `yields`:
  // others are claimed with them, so it may be stopped if it lasts, and then throws Yielded.
  virtual void call(const Handler& handler, std::span<const Claimed* const> messages, bool yields) = 0;
  // What was wished for in the last call.
  virtual std::vector<Wish> wishes() { return {}; }
  // Whether the last call has changed or removed any of these, or what they would be handled by, as far as that can be
  // told: true where it may have.
  virtual bool has_changed(std::span<const Claimed> /* messages */) { return false; }
  // True when what runs should come to an end soon: shutdown, or somebody waits for our locks.
  virtual bool hurry() = 0;
};

// A call that never came to an end: its process brought a signal upon itself, and the server down; its process was
// killed, by whomever; it ignored its time limit and the worker was ended with it; it ended the worker itself; or the
// mq_run that it was made by failed with it.
enum class Loss { kCrash, kKilled, kOverrun, kFatal, kRunFailed };

struct Casualty {
  Uuid message;      // the first one of the call
  int messages = 1;  // that the call was given
  Loss loss = Loss::kCrash;
  std::int64_t token = 0;  // of a leased call; then `messages` counts the calls that ran together
  int signal = 0;          // of kCrash
  int number = 0;          // by which it is told to be settled
};

// Everything else that a worker's loop needs.
// What may fail for other reasons than a handler's: the parts of a worker's loop, the worker itself, which ends with an
// error, and the launcher.
enum class Part { kBatches, kLeasedCalls, kSweep, kCharges, kProcess, kLauncher };

class Host {
 public:
  virtual ~Host() = default;
  // Reads the registry again if it has changed. False: there is nothing here to work for any more.
  virtual bool refresh(Registry& registry) = 0;
  // True when another worker should run what is claimed: this one has settings that have changed since it started.
  virtual bool should_renew() { return false; }
  // True when the registry may have changed since it was refreshed.
  virtual bool is_outdated() { return false; }
  // Calls that ended so in this database since they were last asked for; and whether to ask.
  virtual bool any_casualty() { return false; }
  virtual std::vector<Casualty> casualties() { return {}; }
  // Once that is committed, the numbers of those that were charged, or need not be; the others come again.
  virtual void casualties_settled(const std::vector<int>& /* numbers */) {}
  // When the next message of these channels is due (of leased ones, if `leased`), and when one of any channel has to be
  // buried since it expires; none: no message, or none before long.
  struct Next {
    std::optional<Micros> due;
    std::optional<Micros> expiry;
    std::optional<Micros> later = std::nullopt;  // when the next one becomes due that is not yet
  };
  virtual Next next(const Registry& registry, bool leased) = 0;
  // Buries messages that have expired, a bounded number. True: there were some.
  virtual bool expire() = 0;
  // Makes messages due that waited for a handler which is registered by now: a bounded step. True: there were some, or
  // there is more to look at.
  virtual bool wake_unhandled() { return false; }
  // One bounded step of the sweep: expiry, retention, repair. Of what fails the rest is done all the same.
  struct Swept {
    bool more = false;             // something may have become due by it, or there is more to do
    std::optional<Error> failure;  // the first
  };
  virtual Swept sweep() = 0;
  // Waits for a wake-up, at most that long. False: the worker should end.
  virtual bool wait(Micros most) = 0;
  // The same after trouble: what is sent meanwhile does not end it.
  virtual bool pause(Micros most) { return wait(most); }
  // What ends a wait besides a wake-up, from now on.
  virtual void watch(std::vector<Socket> /* sockets */) {}
  // Waits though the worker should end, since leased calls run. False: it must not wait for them.
  virtual bool wait_to_leave(Micros /* most */) { return false; }
  // Until it leaves it does nothing else, so its place is for others; and whether it was given one again, and should go
  // on.
  virtual void give_place_up() {}
  virtual bool has_place() { return false; }
  // Whether no more leased calls should begin, so that it can leave when those that run are over.
  virtual bool should_drain() { return false; }
  virtual bool should_leave(Micros idle_for) = 0;
  virtual void backlog(bool more_is_due) = 0;
  virtual void report(std::string_view activity) = 0;
  // A batch is claimed; until it is `handled` its messages are with this worker.
  virtual void holds(const Batch& /* messages */) {}
  // A batch is over: committed, with so many handled, or rolled back.
  virtual void handled(std::size_t /* messages */) {}
  // Its calls are over: what has become of them is written from `now` on, then committed.
  virtual void settles(Micros /* now */) {}
  virtual void commits() {}
  virtual void warn(const Error& error) = 0;
  // A part of the loop fails; and the first time that it works again.
  virtual void fails(Part /* part */, const Error& /* why */) {}
  virtual void works_again(Part /* part */) {}
  // A message that cannot be settled is put off until then.
  virtual void put_off(const Uuid& /* message */, std::string_view /* channel_name */, const Error& /* why */,
                       Micros /* until */) {}
  // Limits of a channel name while its handlers conflict; and that those of a batch which began then have.
  struct Limits {
    int workers;
    int batch;
  };
  virtual std::optional<Limits> limits(std::string_view /* channel_name */) { return std::nullopt; }
  virtual void conflict(std::string_view /* channel_name */, Micros /* batch_began */, int /* messages */) {}
  virtual Micros poll_interval() = 0;
  virtual int batch_size() = 0;
};

}  // namespace mq
