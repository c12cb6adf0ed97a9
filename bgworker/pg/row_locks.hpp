// Row locks: rows of mq that other sessions have locked, perhaps for hours. A worker waits for none
// of them for longer than kMostWait. Claims, settle, the sweep, mq_poll and handler calls use this.
// The state is this process's.
//
// A claim takes FOR NO KEY UPDATE and skips locked rows, so an append behind a message that is
// being handled does not wait. One kind of lock goes with that, and not with the DELETE of
// settling: FOR KEY SHARE, which a foreign key takes, too. So:
//   1. A worker's DELETE waits for kMostWait, and then fails. The batch is rolled back.
//   2. For the next kAvoidFor claims take FOR UPDATE, so they pass over held messages.
// A worker claims some rows without a lock at all. If another session gets one of those first, 1 and 2
// hold as well.
// While no session holds such rows, none of this costs anything.
#pragma once

#include "pg/error.hpp"
#include "pg/types.hpp"

namespace mq::row_locks {

inline constexpr int kMostWait = 300;  // ms
inline constexpr Micros kAvoidFor = 60 * kSecond;

// Called once by a worker, whose removals from then on wait for kMostWait at most. Other processes
// wait as long as their lock_timeout says.
void never_wait();
// A worker's transaction begins. Decides whether claims in it avoid held rows. `now` is in µs.
void transaction_begins(Micros now);

// Lives while a handler runs in this process. What it calls waits as its own lock_timeout says.
class InHandler {
 public:
  InHandler();
  ~InHandler();
  InHandler(const InHandler&) = delete;
  InHandler& operator=(const InHandler&) = delete;
};

// True in a worker, outside of what a handler calls.
bool never_waits();

// Before rows of a table are written that others may lock for long (CREATE INDEX, say): a worker does not
// wait for that. It throws 55P03, with what cannot be done; the messages that need it are put off, and
// others go on.
void lock_to_write(const char* table, const char* refused = "no row can be added to it");

// Whether claims avoid held rows.
bool avoiding();

// Lives while a worker does what can be done later: a wait for a lock ends after kMostWait (55P03). kAnywhere:
// in any process, within one transaction.
class ShortWaits {
 public:
  enum class Where { kInWorkers, kAnywhere };
  explicit ShortWaits(Where where = Where::kInWorkers);
  ~ShortWaits();
  ShortWaits(const ShortWaits&) = delete;
  ShortWaits& operator=(const ShortWaits&) = delete;

 private:
  const int before_;
  int nest_level_ = 0;  // of the settings, in a session; 0: they are as they were
};

// Lives while rows are removed. Only a worker's own settling and sweep limit their waits, not what
// a handler calls. `avoid`: in any process, claims meanwhile avoid held rows.
class Removal {
 public:
  explicit Removal(bool avoid = false);
  ~Removal();
  Removal(const Removal&) = delete;
  Removal& operator=(const Removal&) = delete;
  // Runs `deletes`, which wait for kMostWait at most in a worker, then throw 55P03 (was_held()).
  template <class F>
  static auto run(F&& deletes) {
    const Limit limit;
    try {
      return deletes();
    } catch (const Error& error) {
      throw limit.explain(error);
    }
  }

 private:
  class Limit {
   public:
    Limit();
    ~Limit();
    Limit(const Limit&) = delete;
    Limit& operator=(const Limit&) = delete;
    Error explain(const Error& error) const;

   private:
    const int before_;
    bool set_ = false;
  };
  const bool before_;
  const bool avoided_before_;
};

// The error for a row that was claimed without a lock (shmem/row_claims.hpp), and that another session has
// locked, changed or removed since. It counts as held.
Error lost();

// Whether the error says that rows to be removed were held. Then the next transaction avoids such
// rows, and locks what it claims, so the same may be tried again at once.
bool was_held(const Error& error);

}  // namespace mq::row_locks
