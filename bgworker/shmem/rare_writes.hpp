// Rare writes: counts of the writes to what is nearly always empty, so that a claim need not look at it
// again while nobody has written to it.
#pragma once

#include <cstdint>
#include <optional>

namespace mq::shared {

enum class Rare {
  kCancelNotes,  // mq_cancelled
  kPriorities,   // messages with a priority other than 0
  kCount
};

// Rows of that kind were written, in any database. After the write: see SeenEmpty.
void rare_write(Rare what);

// What this process knows of one kind: that there was none, and that nobody has written any since.
class SeenEmpty {
 public:
  explicit SeenEmpty(Rare what) : what_(what) {}

  // is_empty() is asked only where something may have been written since it said yes. It has to see what a
  // transaction in progress has written. Without shared memory it is asked each time.
  template <class F>
  bool is_empty(F&& is_empty) {
    const std::optional<std::uint64_t> before = writes();
    if (at_ && at_ == before) return true;
    const bool empty = is_empty();
    at_ = empty ? before : std::nullopt;
    return empty;
  }

 private:
  std::optional<std::uint64_t> writes() const;

  const Rare what_;
  std::optional<std::uint64_t> at_;  // how many writes there were before the look that found nothing
};

}  // namespace mq::shared
