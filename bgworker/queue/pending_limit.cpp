#include "queue/pending_limit.hpp"

#include <algorithm>
#include <limits>
#include <optional>

#include "pg/crash_point.hpp"
#include "pg/error.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/locks.hpp"
#include "queue/commit_actions.hpp"
#include "queue/limits.hpp"
#include "shmem/channel_key.hpp"
#include "stats/channel_counts.hpp"
#include "stats/row_counts.hpp"

namespace mq::pending_limit {

namespace {

Error is_full(std::string_view channel_name, std::int64_t rows, std::int64_t most) {
  return {"53400", mq::format("channel \"{}\" is full", channel_name),
          rows == 1 ? mq::format("With one more it would have more than max_pending = {} messages.", most)
                    : mq::format("With {} more it would have more than max_pending = {} messages.", rows, most),
          "Send again when messages have been handled, or raise max_pending with mq_limit()."};
}

// The sum of the name, if it is known and may be relied on.
bool has_sum(std::int64_t key) {
  const std::optional<row_counts::Known> known = row_counts::find(Extension::msgs(), {key}).front();
  return known && !row_counts::is_stale(*known);
}

// Counts the name if its sum is not known, or stale. False: the sum could not be kept. Waits for another
// session that counts.
bool count(std::string_view channel_name, std::int64_t key) {
  if (commit_actions::was_changed_by_hand(Extension::msgs())) return false;
  const locks::CountLock alone(key);
  return has_sum(key) ||
         channel_counts::keep_count(channel_name, commit_actions::own_changes(Extension::msgs(), key).rows);
}

void reserve_shared(std::string_view channel_name, std::int64_t rows, std::int64_t most) {
  const Oid msgs = Extension::msgs();
  const std::int64_t key = channel_key(channel_name, {});
  // The notes have room for it first, so that nothing can fail once it is reserved.
  commit_actions::Changed& note = commit_actions::changes_of(msgs, key);
  if (!has_sum(key)) (void)count(channel_name, key);
  const bool by_hand = commit_actions::was_changed_by_hand(msgs);
  const row_counts::Own own = commit_actions::own_changes(msgs, key);
  const row_counts::Room room = by_hand ? row_counts::Room::kUnknown : row_counts::reserve(msgs, key, rows, most, own);
  if (room == row_counts::Room::kFull) throw is_full(channel_name, rows, most);
  if (room == row_counts::Room::kReserved) {
    note.reserved += rows;
    MQ_CRASH_POINT(pending_reserved);
    return;
  }
  // In this order whoever has become visible is counted, and whoever has not has reserved.
  const locks::CountLock alone(key);
  const std::int64_t others = row_counts::reserve_unasked(key, rows) - rows - own.reserved;
  note.reserved += rows;
  const std::int64_t left = most - others - rows;
  if (left >= 0 && channel_counts::count_rows(channel_name, left + 1) <= left) return;
  note.reserved -= rows;
  row_counts::release(key, rows);
  throw is_full(channel_name, rows, most);
}

}  // namespace

void reserve(std::string_view channel_name, std::int64_t rows) {
  const ChannelLimits* limits = limits_of(channel_name);
  if (limits == nullptr || !limits->max_pending) return;
  const std::int64_t most = *limits->max_pending;
  if (rows > most) throw is_full(channel_name, rows, most);
  // Before the locks of this file: who has one of those waits for no lock on the table.
  locks::lock_to_write(Extension::msgs());
  if (row_counts::available()) {
    reserve_shared(channel_name, rows, most);
    return;
  }
  locks::lock_pending(channel_key(channel_name, {}));
  if (channel_counts::count_rows(channel_name, most - rows + 1) > most - rows) throw is_full(channel_name, rows, most);
}

void give_back(std::string_view channel_name, std::int64_t rows) {
  const ChannelLimits* limits = limits_of(channel_name);
  if (limits == nullptr || !limits->max_pending || !row_counts::available()) return;
  const std::int64_t key = channel_key(channel_name, {});
  commit_actions::Changed& note = commit_actions::changes_of(Extension::msgs(), key);
  rows = std::min(rows, note.reserved);
  note.reserved -= rows;
  row_counts::release(key, rows);
}

Use use_of(std::string_view channel_name) {
  const Oid msgs = Extension::msgs();
  const std::int64_t key = channel_key(channel_name, {});
  const row_counts::Own own = commit_actions::own_changes(msgs, key);
  const std::int64_t sending = row_counts::reserved(key) - own.reserved;
  if (row_counts::available() && !commit_actions::was_changed_by_hand(msgs)) {
    locks::lock_to_read(msgs);
    if (!has_sum(key)) (void)count(channel_name, key);
    if (const auto known = row_counts::find(msgs, {key}).front()) return {known->rows + own.rows, sending};
  }
  return {channel_counts::count_rows(channel_name, std::numeric_limits<std::int64_t>::max()), sending};
}

std::optional<std::int64_t> room(std::string_view channel_name) {
  const ChannelLimits* limits = limits_of(channel_name);
  if (limits == nullptr || !limits->max_pending) return std::nullopt;
  const std::int64_t most = *limits->max_pending;
  const Use use = use_of(channel_name);
  return std::max<std::int64_t>(0, most - use.pending - use.sending);
}

}  // namespace mq::pending_limit
