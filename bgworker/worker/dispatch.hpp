// Dispatch: calls the handlers of a batch in one transaction, so that a failed call undoes nothing
// but its own work. Only Worker::run_batch() uses it, with a Dispatcher for each batch. Only this
// process has its state.
//
// The batch runs under one savepoint. When a handler fails:
//   1. The savepoint is rolled back.
//   2. The messages before the failed one run again, since they had worked.
//   3. The failed one is charged from the error in hand, so no attempt runs a failing handler
//      twice. A batch handler is called again with halves of its array, down to one message.
//   4. The rest goes on in pieces half as long, which double again as they succeed.
// In an ordered channel nothing runs behind a message that failed, expired, was snoozed, or was
// discarded and blocks.
//
// Before its first call in the batch the caller is asked for each message whether it may begin, unless it
// said at the start that all may (HandlerCaller::may_begin(), may_refuse()). One that may not is left, and so are those
// behind it in its ordered channel.
//
// When a message was cancelled, before its call or during it, the savepoint is rolled back, and all but that
// message run again.
//
// The batch ends early, and what was not reached is claimed again, uncharged:
//   - A call lasts while others are claimed with it. It is stopped, uncharged (kYielded).
//   - A call fails with a duplicate object or 55006 after another call ran in the transaction,
//     rolled back or not: it may have met what that call left (a temporary table, a named cursor, a
//     prepared statement, trigger events). Or it would affect other calls (SET CONSTRAINTS).
//     It is not charged (kCollided).
//   - A call may have changed or removed messages that are claimed with its own (cut_short()).
//   - A call fails with 40001 or 40P01 (kConflict).
//   - The slice of time is over, or the caller should yield.
//   - kMostSavepoints savepoints were released in which something was written. More than 64 overflow
//     the server's cache of subtransactions, and every snapshot taken in the server pays for that.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <vector>

#include "handlers/caller.hpp"
#include "pg/clock.hpp"
#include "pg/transaction.hpp"
#include "queue/settlement.hpp"

namespace mq {

inline constexpr int kMostSavepoints = 60;

enum class Outcome {
  kUntouched,  // not reached, or behind a message that holds up its ordered channel
  kHandled,
  kFailed,     // an attempt is to be charged; failures() has the error
  kSnoozed,    // its handler wants it again later
  kDiscarded,  // its handler wants it dead-lettered
  kConflict,   // 40001 or 40P01: may be tried again at once; failures() has the error
  kExpired,    // before its call began
  kYielded,    // stopped, since other messages waited behind it: runs again exclusively
  kCollided,   // interfered with another call of the transaction: runs again exclusively
  kCancelled,  // by mq_cancel, before or while its call ran
  kThrottled,  // the rate of its channel let no call begin: claimed again later, uncharged
};

inline bool runs_again_exclusive(Outcome outcome) {
  return outcome == Outcome::kYielded || outcome == Outcome::kCollided;
}

struct DispatchLimits {
  Micros slice_end;  // no call begins after it but the first one, and repeats after a rollback
};

class Dispatcher {
 public:
  Dispatcher(Transaction& transaction, HandlerCaller& caller, Clock& clock, DispatchLimits limits)
      : transaction_(transaction), caller_(caller), clock_(clock), limits_(limits) {}

  // Calls the handlers; `handlers[i]` takes `messages[i]`. Called once for each Dispatcher, in a
  // transaction that the caller ends. An error of a handler is an outcome and is not thrown.
  void run(std::span<const Claimed> messages, std::span<const Handler* const> handlers);

  const std::vector<Outcome>& outcomes() const { return outcomes_; }
  // The errors of the messages that are kFailed or kConflict, in the order in which they came.
  const std::vector<Failure>& failures() const { return failures_; }
  // For each message, by its index: when the last call that succeeded for it began, and its share
  // of that call's time, and when it ended. All are 0 if there was none.
  struct Span {
    Micros started = 0;
    Micros took = 0;
    Micros ended = 0;
  };
  const std::vector<Span>& spans() const { return spans_; }
  // What that call returned for the message, if it is wanted (HandlerCaller::results()).
  const void* result(std::size_t i) const { return results_.empty() ? nullptr : results_[i]; }
  // Whether the call of the kYielded messages waited for a lock, and another worker did too; and
  // how many µs it had run.
  bool yielded_in_conflict() const { return yielded_in_conflict_; }
  Micros yielded_after() const { return duration_; }
  // Whether the batch ended behind a call that may have changed the messages after it.
  bool cut_short() const { return cut_short_; }
  // The dispositions of the messages that are kSnoozed or kDiscarded, by index.
  const std::map<std::size_t, Disposition>& dispositions() const { return dispositions_; }

 private:
  struct Attempt {
    std::size_t reached;         // the messages before it ran
    std::size_t failed_end = 0;  // 0: nothing failed; else the failed call was [reached, failed_end)
    std::size_t cut = 0;         // not 0: rolled back; a call has to end before message `cut`
    bool cancelled = false;      // rolled back; some messages are kCancelled, and the others run again
    bool yielded = false;        // the call did not fail, it was stopped
    bool felt = false;           // stopped for what it did, not for how long it took
    bool is_shared = false;      // the failed call was not the first of the transaction
    bool failed() const { return failed_end != 0; }
  };

  // Runs [first, last) in pieces; a batch handler gets at most `most` messages a call. False: the
  // batch ends early.
  bool run_range(std::size_t first, std::size_t last, std::size_t most);
  Attempt attempt(std::size_t first, std::size_t last, std::size_t most);
  std::size_t call_end(std::size_t first, std::size_t last, std::size_t most) const;
  std::size_t may_begin(std::size_t first, std::size_t last);
  // Whether message `i` has its outcome, or stands behind one that holds up its ordered channel.
  bool skipped(std::size_t i) const;
  bool expired(std::size_t i) const;
  // Whether the disposition of message `i` holds up its ordered channel.
  bool stops_channel(std::size_t i) const;
  void note_dispositions(std::size_t first, std::size_t last);
  void note_results(std::size_t first, std::span<const void* const> results);
  void note_cancelled(std::size_t first, std::size_t last, const std::vector<Uuid>& cancelled);
  // Where the array of the call [first, last) should have ended, since a message in it holds up
  // later ones in it; 0: nowhere.
  std::size_t cut_of(std::size_t first, std::size_t last) const;
  bool exhausted() const;
  // After a failed attempt from `first` on: runs again what had worked, then charges the failure to
  // its message, or repeats the failed call in halves. False: the batch ends early.
  bool resolve(std::size_t first, const Attempt& tried, std::size_t most, const Failure& failure);

  Transaction& transaction_;
  HandlerCaller& caller_;
  Clock& clock_;
  const DispatchLimits limits_;

  std::span<const Claimed> messages_;
  std::span<const Handler* const> handlers_;
  std::vector<Outcome> outcomes_;
  std::vector<Failure> failures_;
  std::map<std::size_t, Disposition> dispositions_;
  std::vector<Span> spans_;
  std::vector<const void*> results_;    // empty: there was none yet
  std::vector<std::size_t> expired_;    // indexes of messages
  std::vector<std::size_t> throttled_;  // the same
  std::vector<const Claimed*> call_;    // the messages of the last call
  std::vector<char> granted_;           // for each message: may_begin() has let it begin
  Micros now_ = 0;                      // read at each savepoint and after each call
  Error error_{"", ""};                 // of the call that failed last
  Micros duration_ = 0;                 // of the call that failed or was stopped last
  int savepoints_ = 0;                  // released ones, with writes
  // Depth of run_range() calls that repeat what was rolled back. While it is not 0 the end of the
  // slice is ignored, or a failure could never be charged.
  int resolving_ = 0;
  bool began_ = false;  // a call was made; before that the end of the slice is ignored
  bool yielded_in_conflict_ = false;
  bool cut_short_ = false;
};

}  // namespace mq
