#include "queue/head_links.hpp"

#include <algorithm>
#include <unordered_set>

#include "pg/empty_table.hpp"
#include "pg/extension.hpp"
#include "pg/refused_rows.hpp"
#include "pg/session.hpp"
#include "pg/statement.hpp"
#include "queue/commit_actions.hpp"
#include "queue/due_scan.hpp"
#include "queue/enabled.hpp"
#include "queue/low_water.hpp"
#include "queue/note_walk.hpp"
#include "queue/promote.hpp"
#include "queue/stay_locks.hpp"

namespace mq {

namespace {

constexpr int kHeadless = 100;  // noted channels that a claim tries

std::int64_t behind(const HeadlessChannel& channel) {
  if (channel.behind != kFromTheStart) return channel.behind;
  const std::int64_t start = low_water::channel_start(low_water::key_of(channel.name, channel.args));
  return start == low_water::kFirstSeq ? start : start - 1;
}

// As promote(), by queries, which ask triggers, rules and policies. Adds the messages that it made
// heads to `linked`. `channels` has those that the messages were found for.
void promote_by_query(const std::vector<const FirstMessage*>& messages, const std::vector<HeadlessChannel>& channels,
                      std::unordered_set<Uuid, UuidHash>& linked) {
  static Statement lock(
      "SELECT m.id, m.channel_key FROM unnest($1, $2) AS r (id, key)"
      "  JOIN $S.mq_msgs m ON m.id = r.id AND m.channel_key = r.key AND m.after_message_id IS NOT NULL"
      " FOR NO KEY UPDATE OF m SKIP LOCKED",
      {UUIDARRAYOID, INT8ARRAYOID});
  static Statement update(
      "UPDATE $S.mq_msgs m SET after_message_id = $N FROM unnest($1, $2) AS r (id, key)"
      " WHERE m.id = r.id AND m.channel_key = r.key RETURNING m.id",
      {UUIDARRAYOID, INT8ARRAYOID});
  ArrayParam ids(UUIDOID), keys(INT8OID), locked_ids(UUIDOID), locked_keys(INT8OID);
  for (const FirstMessage* message : messages) {
    ids.add(uuid_datum(message->id));
    keys.add(Int64GetDatum(channels[message->search].key));
  }
  const Rows locked = lock.run({ids.datum(), keys.datum()});
  if (locked.empty()) return;
  for (std::size_t i = 0; i < locked.size(); ++i) {
    locked_ids.add(locked.get(i, 1));
    locked_keys.add(locked.get(i, 2));
  }
  const Rows updated = update.run({locked_ids.datum(), locked_keys.datum()});
  if (updated.size() < locked.size()) throw refused("mq_msgs", "being changed");
  for (std::size_t i = 0; i < updated.size(); ++i) linked.insert(uuid_of(updated.get(i, 1)));
}

// Those of the heads that nobody is removing. Their locks last no longer than this.
std::unordered_set<Uuid, UuidHash> heads_that_stay(const std::vector<Located>& heads) {
  if (heads.empty()) return {};
  SavepointOnly session;
  std::unordered_set<Uuid, UuidHash> result;
  session.set_savepoint();
  try {
    result = lock_to_stay(heads, true);
  } catch (...) {
    session.rollback_to_savepoint();
    throw;
  }
  session.rollback_to_savepoint();
  return result;
}

}  // namespace

std::vector<HeadlessChannel> link_channels(const std::vector<HeadlessChannel>& channels, Stays stays) {
  std::vector<HeadlessChannel> headless;
  if (channels.empty()) return headless;
  std::vector<ChainSearch> searches;
  searches.reserve(channels.size());
  for (const HeadlessChannel& channel : channels)
    searches.push_back({channel.key, behind(channel), text_datum(channel.name), text_datum(channel.args)});
  const std::vector<FirstMessage> first = first_behind(searches);
  std::vector<Located> heads;
  std::vector<const FirstMessage*> others;
  for (const FirstMessage& message : first) {
    if (message.head)
      heads.push_back({message.id, message.location});
    else
      others.push_back(&message);
  }
  std::unordered_set<Uuid, UuidHash> linked =
      stays == Stays::kToCommit ? lock_to_stay(heads, true) : heads_that_stay(heads);
  if (!others.empty()) {
    if (const auto promoted = promote(others)) {
      for (std::size_t i = 0; i < others.size(); ++i)
        if ((*promoted)[i] != 0) linked.insert(others[i]->id);
    } else {
      promote_by_query(others, channels, linked);
    }
  }
  for (const FirstMessage& message : first) {
    const HeadlessChannel& channel = channels[message.search];
    if (!linked.contains(message.id)) {
      headless.push_back(channel);
      continue;
    }
    commit_actions::wake(channel.name);
    if (message.attempt_at) commit_actions::due(channel.name, 0, {*message.attempt_at, message.seq});
  }
  return headless;
}

void note_headless(const std::vector<HeadlessChannel>& channels) {
  static Statement insert(
      "INSERT INTO $S.mq_headless (channel_key, channel_name, channel_args) SELECT * FROM unnest($1, $2, $3)",
      {INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID});
  if (channels.empty()) return;
  ArrayParam keys(INT8OID), names(TEXTOID), args(TEXTOID);
  for (const HeadlessChannel& channel : channels) {
    keys.add(Int64GetDatum(channel.key));
    names.add(text_datum(channel.name));
    args.add(text_datum(channel.args));
  }
  insert.run({keys.datum(), names.datum(), args.datum()});
}

void link_or_note(const std::vector<HeadlessChannel>& channels, Stays stays) {
  const std::vector<HeadlessChannel> headless = link_channels(channels, stays);
  note_headless(headless);
  for (const HeadlessChannel& channel : headless) commit_actions::wake(channel.name);
}

bool link_headless() {
  static Statement select(
      "SELECT n.ctid, n.xmin, n.channel_key, n.channel_name, n.channel_args FROM $S.mq_headless n"
      " WHERE " NOTES_BEHIND,
      {TIDOID, INT8OID});
  static Statement forget("DELETE FROM $S.mq_headless n WHERE " NOTES_OF("$S.mq_headless"), {TIDARRAYOID, XIDARRAYOID});
  static NoteWalk walk(kHeadless);
  if (has_no_block(Extension::get().relation("mq_headless"))) return false;
  const Rows rows = walk.step(select);
  if (rows.empty() || !enabled::still_here()) return false;
  std::vector<HeadlessChannel> noted;
  for (std::size_t i = 0; i < rows.size(); ++i)
    noted.push_back({DatumGetInt64(rows.get(i, 3)), std::string(text_view(rows.get(i, 4))),
                     std::string(text_view(rows.get(i, 5)))});
  const std::vector<HeadlessChannel> headless = link_channels(noted);
  NoteWalk::forget(forget, rows, [&](std::size_t i) {
    return std::none_of(headless.begin(), headless.end(), [&](const HeadlessChannel& channel) {
      return channel.key == noted[i].key && channel.name == noted[i].name && channel.args == noted[i].args;
    });
  });
  return !headless.empty() || walk.left_some(rows);
}

}  // namespace mq
