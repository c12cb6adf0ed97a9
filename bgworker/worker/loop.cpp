#include "worker/loop.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>

#include "handlers/policy.hpp"
#include "pg/format.hpp"
#include "worker/dispatch.hpp"

namespace mq {

namespace {

struct Over {};  // thrown: the worker has nothing to work for any more

// Between two looks at what is due and cannot be claimed: a tenth of the time it has been so, within these.
constexpr Micros kLeastLockedWait = kSecond / 10;
constexpr Micros kMostLockedWait = kSecond;
constexpr Micros kBusyLook = kSecond;       // between two looks of a busy worker for expired messages
constexpr Micros kForgiven = 10 * kSecond;  // see works()

}  // namespace

Worker::Worker(const Ports& ports) : ports_(ports), claimer_(ports.clock), pace_(kFirstPace) {
  claimer_.handle_one_by_one();
}

template <class Body>
void Worker::run_part(LoopPart& part, Micros& most, Body&& body) {
  const Micros left = part.trouble.left(ports_.clock.steady());
  if (left > 0) {
    most = std::min(most, left);
    return;
  }
  try {
    body();
    part.trouble.succeeded();
  } catch (const Error& error) {
    ports_.transaction.rollback();
    ports_.host.handled(0);
    if (is_over()) throw Over();
    ports_.host.warn(error);
    fails(part, error);
    part.trouble.failed(ports_.clock.steady());
    most = std::min(most, part.trouble.left(ports_.clock.steady()));
  }
}

void Worker::fails(LoopPart& part, const Error& error) {
  part.failed_at = ports_.clock.steady();
  ports_.host.fails(part.part, error);
}

void Worker::works(LoopPart& part, bool proven) {
  if (!part.failed_at || (!proven && ports_.clock.steady() - *part.failed_at < kForgiven)) return;
  part.failed_at.reset();
  ports_.host.works_again(part.part);
}

void Worker::run() {
  learns_ = true;
  claimer_.claim_unlocked();
  Micros idle_since = ports_.clock.now();
  Micros last_sweep = 0;
  bool sweep_on = false;                   // the sweep has more to do, once nothing else is
  Micros next_expiry = 0;                  // when to look for expired messages next
  Micros free_at = ports_.clock.steady();  // when nothing that is due was locked
  bool look_for_orphans = true;
  const auto leaves = [&] {
    if (!drain()) return true;
    idle_since = ports_.clock.now();
    return false;
  };
  for (;;) try {
      Micros most = ports_.host.poll_interval();
      const Micros interval = most;
      if (ports_.clock.steady() >= charge_again_at_) {
        if (ports_.host.any_aborted_call())
          (void)charge_aborted_calls();
        else
          works(charges_, true);
      }
      if (const Micros left = charge_again_at_ - ports_.clock.steady(); left > 0) most = std::min(most, left);
      BatchResult result;
      run_part(batches_, most, [&] { result = run_batch(ports_.host.batch_size(), nullptr); });
      if (result.over) {
        if (leaves()) return;
        continue;
      }
      if (batches_.trouble.failures() == 0 && !result.unsettled) works(batches_, result.claimed > 0);
      LeasedHandlers::Turn turn;
      if (ports_.leased != nullptr)
        run_part(leased_calls_, most, [&] {
          if (look_for_orphans) release_orphans();
          look_for_orphans = false;
          turn = ports_.leased->turn(registry_, {.drain = ports_.host.should_drain()});
        });
      if (turn.failure)
        fails(leased_calls_, *turn.failure);
      else if (leased_calls_.trouble.failures() == 0)
        works(leased_calls_, turn.handled > 0);
      if (turn.handled > 0) ports_.host.handled(turn.handled);
      // For a claimed batch run_batch() has told the host already.
      if (result.claimed == 0 || turn.more_is_due) ports_.host.backlog(result.more_is_due || turn.more_is_due);
      const Micros now = ports_.clock.now();
      bool again = result.claimed > 0 || turn.moved;
      if (again) {
        idle_since = now;
        free_at = ports_.clock.steady();
        next_expiry = std::min(next_expiry, now + kBusyLook);
      }
      run_part(schedules_, most, [&] { again = ports_.host.send_scheduled(nullptr) || again; });
      if (schedules_.trouble.failures() == 0) works(schedules_, false);
      run_part(sweep_, most, [&] {
        again = ports_.host.wake_unhandled() || again;
        if (now >= next_expiry) {
          const bool expired = ports_.host.expire();
          next_expiry = expired ? now : now + kBusyLook;
          again = expired || again;
        }
        const Micros sweep_after = sweep_.failed_at ? std::min(interval, kLongestPause) : interval;
        if (now - last_sweep >= sweep_after || now < last_sweep || (sweep_on && !again) ||
            sweep_.trouble.failures() > 0) {
          last_sweep = now;
          sweep_on = false;
          const Swept swept = ports_.host.sweep();
          sweep_on = swept.more;
          if (swept.failure) {
            ports_.host.warn(*swept.failure);
            fails(sweep_, *swept.failure);
          } else {
            works(sweep_, true);
          }
          again = sweep_on || again;
          look_for_orphans = true;
        }
      });
      if (again) {
        if (!ports_.host.wait(0) && leaves()) return;
        continue;
      }
      run_part(batches_, most, [&] {
        // Another session has locked a message that is due and was not claimed, or has the last slot of its
        // channel, or is at one that may become due. The end of its transaction may wake no worker, so this one looks
        // again.
        const Host::Next next = ports_.host.next(registry_, ports_.leased != nullptr && ports_.leased->can_begin(),
                                                 claimer_.left_notes() ? std::optional(now) : std::nullopt);
        bool locked = false;
        for (const auto& due : {next.due, next.expiry}) {
          if (due && *due > now) most = std::min(most, *due - now);
          locked = locked || (due && *due <= now);
        }
        const Micros moment = ports_.clock.steady();
        if (!locked) free_at = moment;
        if (locked) most = std::min(most, std::clamp((moment - free_at) / 10, kLeastLockedWait, kMostLockedWait));
        next_expiry = next.expiry.value_or(kNever);
      });
      if (ports_.leased != nullptr && leased_calls_.trouble.failures() == 0)
        if (const auto turn_in = ports_.leased->next_turn()) most = std::min(most, *turn_in);
      // A part that failed is tried again soon, although there may be nothing to do.
      for (const LoopPart* part : {&batches_, &leased_calls_, &sweep_, &charges_, &schedules_})
        if (part->failed_at) most = std::min(most, kLongestPause);
      ports_.host.report({});
      if (is_leasing()) idle_since = ports_.clock.now();
      if (ports_.host.should_leave(ports_.clock.now() - idle_since)) {
        if (leaves()) return;
        continue;
      }
      watch();
      woken_ = true;
      // After trouble the worker must not count as free for work, which wait() would say.
      if (!(batches_.trouble.failures() > 0 ? ports_.host.pause(most) : ports_.host.wait(most)) && leaves()) return;
    } catch (const Over&) {
      return;
    }
}

// Called before each wait: a session that was closed since the last one has no socket any more.
void Worker::watch() {
  if (ports_.leased == nullptr) return;
  // While leased calls pause after an error no turn would answer their sockets.
  ports_.host.watch(leased_calls_.trouble.failures() > 0 ? std::vector<Socket>() : ports_.leased->sockets());
}

bool Worker::is_leasing() const {
  return ports_.leased != nullptr && ports_.leased->busy();
}

// Waits for the leased calls before the worker leaves; another pool may have its slot meanwhile.
// Sessions are closed only when they are idle: one that is closed in the middle of a statement
// complains in the server's log. True: the worker has a slot again, and goes on.
bool Worker::drain() {
  if (ports_.leased != nullptr && ports_.leased->has_sessions()) ports_.host.give_up_database_slot();
  while (ports_.leased != nullptr && ports_.leased->has_sessions()) {
    Micros most = kSecond;
    try {
      run_part(leased_calls_, most, [&] {
        const LeasedHandlers::Turn turn = ports_.leased->turn(registry_, {.drain = true});
        ports_.host.handled(turn.handled);
      });
    } catch (const Over&) {
      return false;
    }
    if (!ports_.leased->has_sessions()) return false;
    if (leased_calls_.trouble.failures() == 0)
      if (const auto turn_in = ports_.leased->next_turn()) most = std::min(most, *turn_in);
    watch();
    if (!ports_.host.wait_to_leave(most)) return false;
    if (ports_.host.has_database_slot()) return true;
  }
  return false;
}

void Worker::release_orphans() {
  if (ports_.leased == nullptr) return;
  ports_.transaction.begin();
  if (ports_.host.refresh(registry_)) ports_.leased->release_orphans(registry_);
  ports_.transaction.commit();
}

// Asked after an error: the extension may have been dropped while the batch ran.
bool Worker::is_over() {
  try {
    ports_.transaction.begin();
    const bool more = ports_.host.refresh(registry_);
    ports_.transaction.commit();
    return !more;
  } catch (const Error&) {
    ports_.transaction.rollback();
    return false;
  }
}

// For mq_run, when nothing is due: a low-water mark that was too high may have hidden messages.
bool Worker::overlooked() {
  ports_.transaction.begin();
  const bool some = claimer_.overlooked();
  ports_.transaction.commit();
  return some;
}

std::int64_t Worker::run_until_empty(std::optional<std::int64_t> most, const std::vector<std::string_view>* only) {
  std::int64_t handled = 0;
  if (ports_.leased != nullptr && ports_.host.any_aborted_call()) (void)charge_aborted_calls();
  release_orphans();
  (void)ports_.host.send_scheduled(only);  // once: a schedule of every second must not keep this from its end
  for (;;) {
    const std::int64_t left = most ? *most - handled : std::numeric_limits<int>::max();
    if (left <= 0) break;
    const auto limit = static_cast<int>(std::min<std::int64_t>(left, ports_.host.batch_size()));
    const BatchResult result = run_batch(limit, only);
    if (result.over) break;
    handled += static_cast<std::int64_t>(result.handled);
    bool again = result.claimed > 0;
    if (!again && ports_.leased != nullptr) {
      const auto turn = ports_.leased->turn(registry_, {.only = only, .most = left});
      handled += static_cast<std::int64_t>(turn.handled);
      again = turn.moved;
      // Its call is over, and is settled before anything else: before the next batch, which may handle the last of
      // `most` messages, and before wait() throws if the user has cancelled mq_run. Where another session has locked
      // the message it waits.
      while (ports_.leased->busy()) {
        handled += static_cast<std::int64_t>(ports_.leased->turn(registry_, {.drain = true}).handled);
        if (ports_.leased->busy() && !ports_.host.wait(ports_.leased->next_turn().value_or(0))) return handled;
      }
    }
    if (!again && !ports_.host.wake_unhandled() && !overlooked() && !ports_.host.sweep().more) break;
    if (!ports_.host.wait(0)) break;
  }
  return handled;
}

}  // namespace mq
