// Rows of ours that others have locked, perhaps for hours: nothing that a worker does waits for them.
//
// A claim takes FOR NO KEY UPDATE and skips what is locked, so that an append behind a message that is being handled
// does not wait. One kind of lock goes with that and not with the DELETE of settling: FOR KEY SHARE, which a foreign
// key takes, too; and payloads are not locked at all until they are deleted. So a worker's DELETE waits for kMostWait
// and then fails, the batch is rolled back, and for the next kAvoidFor claims take FOR UPDATE, so what is held is not
// even claimed, and payloads that are held are left to the sweep. Where nobody holds anything none of that costs a
// thing.
#pragma once

#include "../error.hpp"
#include "../message.hpp"

namespace mq::row_locks {

inline constexpr int kMostWait = 300;  // ms
inline constexpr Micros kAvoidFor = 60 * kSecond;

// For a worker: from now on. Other processes wait, as their own lock_timeout says.
void never_wait();
// A worker's transaction begins: claims in it avoid what is held, or do not.
void transaction_begins(Micros now);

// In a worker, outside of what a handler calls.
bool never_waits();

// Whether claims, and what removes their messages, avoid what is held.
bool avoiding();

// For a worker: while it does what can be done later. Nothing is waited for longer than kMostWait, then 55P03 is
// raised.
class ShortWaits {
 public:
  ShortWaits();
  ~ShortWaits();
  ShortWaits(const ShortWaits&) = delete;
  ShortWaits& operator=(const ShortWaits&) = delete;

 private:
  const int before_;
};

// While rows are removed: by a worker's own settling and sweep, not by what a handler calls, whose own wait it is.
// `avoid`: payloads that are held are left alone in any process; the messages are locked FOR UPDATE.
class Removal {
 public:
  explicit Removal(bool avoid = false);
  ~Removal();
  Removal(const Removal&) = delete;
  Removal& operator=(const Removal&) = delete;
  // Payloads that are held are to be left alone.
  static bool skips();
  // Runs deletes, which wait for kMostWait at most.
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

// Whether that was the error: then the next transaction avoids what is held, and the same may be tried again at once.
bool was_held(const Error& error);

}  // namespace mq::row_locks
