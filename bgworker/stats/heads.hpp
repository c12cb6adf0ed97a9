// Heads: the channel names that have heads, and how many heads of each are due and later, read from
// the view mq_heads along the indexes of heads (mq_msgs_due, mq_msgs_prioritized).
//
// channel_counts.cpp calls it, in a transaction, an SPI connection and an OwnerScope. The file owns
// no state. Each statement asks for the order of those indexes, or the planner might take another
// index that begins with the name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pg/statement.hpp"
#include "stats/row_counts.hpp"

namespace mq::channel_counts {

inline constexpr std::int64_t kSmall = 50;  // rows of a kind that are counted at each look

// Look: the findings of one look at a channel name. An unordered message is a head, too.
struct Look {
  std::string name;
  std::int64_t key = 0;                         // channel_key() of the name and no arguments
  std::optional<Micros> oldest = {};            // the least attempt_at of its heads; none: all NULL
  std::optional<row_counts::Known> known = {};  // its row counts; none: not known, or not used
  std::int64_t due = 0;                         // due heads, counted up to kSmall + 1
  std::int64_t later = 0;                       // heads due later, counted up to kSmall + 1
  bool small() const { return due <= kSmall && later <= kSmall; }
};

// All channel names that have a head, in ascending order, with `oldest`.
std::vector<Look> find_names();
// Fills in `known`.
void find_known(std::vector<Look>& looks);
// Fills in `due`, or `later`. Call it for `later` first: where that suffices to divide the rows, a
// call for `due` tells only whether there is a due head (1) or not (0).
void count_heads(std::vector<Look>& looks, Micros now, bool due);
// Counts the due heads of one name, or the later ones, up to `limit`.
std::int64_t count_heads(std::string_view name, Micros now, bool due, std::int64_t limit);

}  // namespace mq::channel_counts
