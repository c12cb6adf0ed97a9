// Host: what Worker (loop.hpp) needs of its process besides claim, dispatch and settle: the
// registry, the sweep, waiting, and what the process tells others.
//
// Only Worker calls it. WorkerHost (process.cpp) implements it for background workers, CallHost
// (mq_run.cpp) for CALL mq_run; ServerHost (server_host.hpp) is what they share. The interface has
// no state. Its functions throw Error for what the server raises.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "handlers/registry.hpp"
#include "leased/handler_session.hpp"
#include "pg/error.hpp"
#include "queue/message.hpp"
#include "queue/swept.hpp"
#include "shmem/aborted_call.hpp"
#include "shmem/part.hpp"
#include "shmem/throttle.hpp"

namespace mq {

class Host {
 public:
  virtual ~Host() = default;
  // Reads the registry again if it has changed. Called in a transaction. False: the worker has
  // nothing to work for any more.
  virtual bool refresh(Registry& registry) = 0;
  // True when a new worker should run what is claimed: the settings have changed since this worker
  // started.
  virtual bool should_renew() { return false; }
  // True when the registry may have changed since the last refresh().
  virtual bool is_outdated() { return false; }
  // Aborted calls of this database and role that are to be charged. any_aborted_call() is cheap and
  // says whether to ask. aborted_calls() hands each to one process at a time.
  virtual bool any_aborted_call() { return false; }
  virtual std::vector<AbortedCall> aborted_calls() { return {}; }
  // Called after the commit, with the AbortedCall::number of each call that was charged or need not
  // be. aborted_calls() returns the others again.
  virtual void aborted_calls_settled(const std::vector<int>& /* numbers */) {}
  // The next moments at which there may be something to do. None: no message has such a moment.
  // `due` and `later` concern the channels of the registry that are not disabled.
  struct Next {
    std::optional<Micros> due;                   // of the first message, due already or not
    std::optional<Micros> expiry;                // of any channel: a message is to be dead-lettered
    std::optional<Micros> later = std::nullopt;  // of the first message that is not due yet
  };
  // Reads them in a transaction of its own. `leased`: leased channels count as well. `noted`: when
  // something else is due, without a row that says so.
  virtual Next next(const Registry& registry, bool leased, std::optional<Micros> noted) = 0;
  // Dead-letters a bounded number of expired messages. True: there were some.
  virtual bool expire() = 0;
  // Makes messages due that no handler took before and one takes by now: one bounded step. True: it
  // made some due, or there are more to look at.
  virtual bool wake_unhandled() { return false; }
  // Sends what schedules ask for that are due. `only`: of these channel names alone. True: messages were sent.
  virtual bool send_scheduled(const std::vector<std::string_view>* /* only */) { return false; }
  // One bounded round of the sweep: expiry, retention, repair. A step that fails does not stop the
  // others; Swept::failure is the first error.
  virtual Swept sweep() = 0;
  // Waits for a wake-up, at most `most` µs. False: the worker should leave.
  virtual bool wait(Micros most) = 0;
  // The same after trouble. A message that is sent does not end the wait.
  virtual bool pause(Micros most) { return wait(most); }
  // From the next wait on these sockets end a wait too, in place of those given before.
  virtual void watch(std::vector<Socket> /* sockets */) {}
  // Waits though the worker should leave, since leased calls run. False: it must not wait for them.
  virtual bool wait_to_leave(Micros /* most */) { return false; }
  // The worker only waits for its leased calls from here on, so another pool may have its slot of
  // the database. has_database_slot(): it got a slot back, and should go on.
  virtual void give_up_database_slot() {}
  virtual bool has_database_slot() { return false; }
  // Whether no more leased calls should begin, so that the worker can leave after those that run.
  virtual bool should_drain() { return false; }
  // Whether a worker that has been idle for that many µs should leave.
  virtual bool should_leave(Micros idle_for) = 0;
  // Whether more is due than this worker has claimed: other workers should help.
  virtual void backlog(bool more_is_due) = 0;
  // Sets what pg_stat_activity shows of the process; empty: it is idle.
  virtual void report(std::string_view activity) = 0;
  // A batch is claimed. This worker has its messages until the call of handled().
  virtual void holds(const Batch& /* messages */) {}
  // A batch is over. It was committed with that many messages handled, or rolled back (0).
  virtual void handled(std::size_t /* messages */) {}
  // The handlers of the batch have returned: the worker settles from `now` on, then commits.
  virtual void settles(Micros /* now */) {}
  virtual void commits() {}
  // Reports an error that the loop goes on after. CallHost throws it.
  virtual void warn(const Error& error) = 0;
  // A part of the loop has failed; a part that had failed works again.
  virtual void fails(Part /* part */, const Error& /* why */) {}
  virtual void works_again(Part /* part */) {}
  // The worker has put off a message that it cannot settle. For mq_health().
  virtual void put_off(const Uuid& /* message */, std::string_view /* channel_name */, const Error& /* why */,
                       Micros /* until */) {}
  // The limits of a channel name while its handlers conflict (throttle.hpp). None: no limit.
  virtual std::optional<Limits> limits(std::string_view /* channel_name */) { return std::nullopt; }
  // A call on the channel name has conflicted, in a batch of that many messages.
  virtual void conflict(std::string_view /* channel_name */, Micros /* batch_began */, int /* messages */) {}
  virtual Micros poll_interval() = 0;
  virtual int batch_size() = 0;
};

}  // namespace mq
