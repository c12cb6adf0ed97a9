// Dispatch: calls the handlers of a batch inside one transaction, so that what fails takes nothing else along.
//
// The batch runs under one savepoint. When a handler fails, what ran under it is rolled back; the messages
// before the failed one run again, as they had worked; the failed one is charged from the error in hand, so no
// attempt runs a failing handler twice; the rest goes on in pieces half as long, which grow again as they
// succeed. A batch handler that fails is called again with halves of its array, down to the one that is at
// fault. In an ordered channel nothing runs behind a message that failed or expired.
//
// A call that lasts while others are claimed with it is stopped, and is not charged; what worked before it runs again,
// and the batch ends.
//
// A call that fails with a duplicate object (a temporary table that ends with the transaction, a named cursor, a
// prepared statement) though another one ran before it in the transaction is not charged either: it may have met what
// that has left, even if it was rolled back.
//
// A call may change or remove messages that are claimed with its own. What was claimed of them is not what is there any
// more, so nothing is called behind it: the batch ends, and they are claimed again.
//
// A transaction uses at most kMostSavepoints savepoints (more than 64 overflow the server's cache of
// subtransactions, and every snapshot taken in the server pays for it) and ends early when its slice of time
// is over; what it did not reach stays as it was and is claimed again.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <vector>

#include "ports.hpp"

namespace mq {

inline constexpr int kMostSavepoints = 60;

enum class Outcome {
  kUntouched,  // not reached, or behind a failed message of its channel
  kHandled,
  kFailed,     // an attempt is charged; its Failure says why
  kSnoozed,    // kept for later, as its handler wished
  kDiscarded,  // dead, as its handler wished
  kConflict,   // 40001 or 40P01: may be tried again at once
  kExpired,    // while it waited for its turn
  kYielded,    // was stopped, since others waited behind it: runs again without company
  kCollided,   // met what another call of the transaction had left, or did what others would: likewise
};

inline bool runs_again_alone(Outcome outcome) {
  return outcome == Outcome::kYielded || outcome == Outcome::kCollided;
}

struct DispatchLimits {
  Micros slice_end;
};

class Dispatcher {
 public:
  Dispatcher(Transaction& transaction, HandlerCaller& caller, Clock& clock, DispatchLimits limits)
      : transaction_(transaction), caller_(caller), clock_(clock), limits_(limits) {}

  // `handlers[i]` takes `messages[i]`.
  void run(std::span<const Claimed> messages, std::span<const Handler* const> handlers);

  const std::vector<Outcome>& outcomes() const { return outcomes_; }
  const std::vector<Failure>& failures() const { return failures_; }
  // Of each message that was run: when its last call began, and its share of the time that took.
  struct Span {
    Micros started = 0;
    Micros took = 0;
  };
  const std::vector<Span>& spans() const { return spans_; }
  // Whether the messages that are kYielded waited for a lock, as others did.
  bool yielded_in_conflict() const { return yielded_in_conflict_; }
  Micros yielded_after() const { return duration_; }
  // Whether it ended behind a call that may have changed what was to run next.
  bool cut_short() const { return cut_short_; }
  // Of the messages that are kSnoozed or kDiscarded, by their index.
  const std::map<std::size_t, Wish>& wishes() const { return wishes_; }

 private:
  struct Attempt {
    std::size_t reached;         // everything before it ran
    std::size_t failed_end = 0;  // 0: nothing failed; else [reached, failed_end) was the failed call
    std::size_t cut = 0;         // not 0: all ran, but must run again up to here and no further
    bool yielded = false;        // it did not fail, it was stopped
    bool felt = false;           // for what it did, not for how long
    bool company = false;        // the failed call was not the first of the transaction
    bool failed() const { return failed_end != 0; }
  };

  // Runs [first, last) in pieces; batch handlers get at most `most` messages a call. False: ended early.
  bool run_range(std::size_t first, std::size_t last, std::size_t most);
  Attempt attempt(std::size_t first, std::size_t last, std::size_t most);
  std::size_t call_end(std::size_t first, std::size_t last, std::size_t most) const;
  bool skipped(std::size_t i) const;
  bool expired(std::size_t i) const;
  bool stops_channel(std::size_t i) const;
  void note_wishes(std::size_t first, std::size_t last);
  // Where a call's array should have ended, since a message in it holds up others in it; 0 if it is well.
  std::size_t cut_of(std::size_t first, std::size_t last) const;
  bool spent() const;
  // After a failed attempt from `first` on: what had worked runs again, then the failure is charged to its
  // message, or looked for in halves of the failed call. False: ended early.
  bool resolve(std::size_t first, const Attempt& tried, std::size_t most, const Failure& failure);

  Transaction& transaction_;
  HandlerCaller& caller_;
  Clock& clock_;
  const DispatchLimits limits_;

  std::span<const Claimed> messages_;
  std::span<const Handler* const> handlers_;
  std::vector<Outcome> outcomes_;
  std::vector<Failure> failures_;
  std::map<std::size_t, Wish> wishes_;
  std::vector<Span> spans_;
  std::vector<std::size_t> expired_;  // by their index
  Micros now_ = 0;                    // read once a call
  Error error_{"", ""};               // of the attempt that failed last
  Micros duration_ = 0;
  int savepoints_ = 0;
  int resolving_ = 0;   // failures being resolved: that goes on when the slice is over, or it would never end
  bool began_ = false;  // something has run: the slice counts
  bool yielded_in_conflict_ = false;
  bool cut_short_ = false;
};

}  // namespace mq
