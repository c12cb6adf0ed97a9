// Prerequisite rows: the tables mq_prerequisites, which says what messages wait for, and mq_rechecks,
// which notes what is to be looked at again. prerequisites.cpp decides with it. No state.
//
// Nothing here waits for another session's row. The looks are dirty (pg/dirty_scan.hpp): they show what
// transactions in progress are about to add, remove or change. What they return is in memory of the
// current context. All need an OwnerScope and an SPI connection.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "pg/types.hpp"

namespace mq {

// A row of mq_prerequisites, and of mq_rechecks: `dependent` waits for `prerequisite`.
struct Prerequisite {
  Uuid dependent, prerequisite;

  friend bool operator==(const Prerequisite&, const Prerequisite&) = default;
  friend auto operator<=>(const Prerequisite&, const Prerequisite&) = default;
};

enum class Seen {
  kNot,        // nothing is there
  kThere,      // it is there, and no other transaction in progress has touched it
  kDisturbed,  // another transaction in progress is adding, removing or changing it
};

struct PrerequisiteRow {
  Prerequisite pair;
  Seen seen;
  std::uint64_t location;  // ctid: block << 16 | offset
};

// Whether the table has a block: it has none until the feature is used, and once VACUUM has cut it off.
// Waits for a session that has locked the whole table, as a removal does (pg/row_locks.hpp).
bool has_prerequisites();
// The same, but does not wait: false if it would have to.
bool has_rechecks();

// The rows with these prerequisites; the rows of these dependents; and for each pair its row, or one that
// says kNot.
std::span<const PrerequisiteRow> rows_of(std::span<const Uuid> prerequisites);
std::span<const PrerequisiteRow> rows_of_dependents(std::span<const Uuid> dependents);
std::span<const PrerequisiteRow> rows_of_pairs(std::span<const Prerequisite> pairs);
// For each pair a row of the dependent, if there is any: one that is kThere rather than one that is
// kDisturbed. Begins behind the prerequisite: as a rule messages end in the order of their ids, and
// what is before it are entries of rows that are gone.
std::span<const PrerequisiteRow> any_row_of(std::span<const Prerequisite> pairs);
// The messages with these ids in mq_msgs, without those that are dead and block their channels.
std::span<const Seen> pending_now(std::span<const Uuid> messages);
// The channel name of the message, also if its sender has not committed; empty: it is nowhere.
std::string_view channel_of(const Uuid& message);

void add_rows(std::span<const Prerequisite> pairs);
// Removes rows that were kThere. Returns for each whether it has; another session has the others, or
// has removed them.
std::vector<char> remove_rows(std::span<const PrerequisiteRow> rows);
// Notes pairs in mq_rechecks.
void add_rechecks(std::span<const Prerequisite> pairs);

}  // namespace mq
