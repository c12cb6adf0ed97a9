// Heads: the channel names that have messages, and how many are due and later of each, read from the index of heads
// (mq_msgs_due). Each statement asks for its order, or the planner might take another index that begins with the name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "counts.hpp"
#include "spi.hpp"

namespace mq::pending {

#define NIL_ID "'00000000-0000-0000-0000-000000000000'"
#define HEAD "(m.after_message_id IS NULL OR m.after_message_id = " NIL_ID ")"

inline constexpr std::int64_t kSmall = 50;  // rows of a kind that are counted at each look

// A channel name at a look. Counts of kinds end at kSmall + 1.
struct Look {
  std::string name;
  std::int64_t key = 0;
  std::optional<Micros> oldest = {};        // that is to be handled at some time
  std::optional<counts::Known> known = {};  // of how many rows there are
  std::int64_t due = 0;                     // heads, and what has no order
  std::int64_t later = 0;                   // the same
  bool small() const { return due <= kSmall && later <= kSmall; }
};

std::vector<Look> find_names();
// Fills in what is known. `wanted`: by somebody who looks.
void find_known(std::vector<Look>& looks, bool wanted);
// Fills in the due heads of each name, or the later ones.
void count_heads(std::vector<Look>& looks, Micros now, bool due);
// Of one name, up to a limit.
std::int64_t count_heads(std::string_view name, Micros now, bool due, std::int64_t limit);

}  // namespace mq::pending
