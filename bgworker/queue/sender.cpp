#include "queue/sender.hpp"

#include <algorithm>
#include <map>
#include <optional>

#include "pg/arguments.hpp"
#include "pg/crash_point.hpp"
#include "pg/extension.hpp"
#include "pg/refused_rows.hpp"
#include "pg/sequences.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/append_lock.hpp"
#include "queue/commit_actions.hpp"
#include "queue/dedup.hpp"
#include "queue/fairness.hpp"
#include "queue/insert.hpp"
#include "queue/limits.hpp"
#include "queue/low_water.hpp"
#include "queue/pending_limit.hpp"
#include "queue/prerequisites.hpp"
#include "queue/tails.hpp"
#include "queue/uuid.hpp"
#include "shmem/channel_key.hpp"

extern "C" {
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"
}

namespace mq {

namespace {

constexpr int kTries = 1000;  // of send_once()

std::int64_t next_seq(Oid sequence) {
  return guard::call([&] { return nextval_internal(sequence, false); });
}

bool is_object(Datum json) {
  return guard::call([&] { return JB_ROOT_IS_OBJECT(DatumGetJsonbP(json)); });
}

std::string json_text(Datum json) {
  const char* text = guard::call([&] { return DatumGetCString(DirectFunctionCall1(jsonb_out, json)); });
  return text;
}

Param param_of(const Value& value) {
  return value.null ? Param() : Param(value.datum);
}

}  // namespace

struct Sender::Links {
  ChannelTails channels;
  std::vector<Tail> before;  // their tails before the messages are appended
};

void Sender::expire_after(Datum interval) {
  const Micros now = GetCurrentTransactionStartTimestamp();
  const Micros length = interval_of({interval, false}, "expires", now);
  check::positive("expires", interval_text(interval), length);
  expires_at_ = now + length;
}

void Sender::add(const NewMessage& given) {
  const std::optional<std::size_t> number = numbered_ ? std::optional(messages_.size() + 1) : std::nullopt;
  const auto field = [&](std::string_view name) { return check::field_of(name, number); };
  const Micros now = GetCurrentTransactionStartTimestamp();

  Checked m{};
  m.channel_name = text_of(given.channel_name, field("channel_name"));
  check::name(field("channel_name"), m.channel_name);
  m.channel_args = text_of(given.channel_args, field("channel_args"));
  check::name(field("channel_args"), m.channel_args, check::kArgsBytes);
  m.name = text_of(given.name, field("name"));
  check::name(field("name"), m.name);
  m.ordered = bool_of(given.ordered, field("ordered"));
  m.retries = int_of(given.retries, field("retries"));
  check::retries(field("retries"), m.retries);
  const Micros delay = interval_of(given.delay, field("delay"), now);
  m.retry_backoff = interval_of(given.retry_backoff, field("retry_backoff"), now);
  m.two_phase = !given.commit_interval.null;
  m.commit_interval = m.two_phase ? interval_of(given.commit_interval, field("commit_interval"), now + delay) : 0;
  m.attempt_at = m.two_phase ? now + delay + m.commit_interval : std::min(now + delay, expires_at_);
  if (given.id.null) check::fail_null(field("id"));
  m.id = uuid_of(given.id.datum);
  if (m.id == Uuid()) check::fail(field("id"), "00000000-0000-0000-0000-000000000000", "must not be the nil uuid");
  m.payload_json = given.payload_json;
  if (json_ == Json::kText && !m.payload_json.null)
    m.payload_json.datum = json_of(text_view(m.payload_json.datum), field("payload_json"));
  m.payload_bytes = given.payload_bytes;
  m.headers = given.headers;
  if (!m.headers.null && !is_object(m.headers.datum))
    check::fail(field("headers"), json_text(m.headers.datum), "must be a JSON object");
  m.priority = given.priority.null ? std::int16_t{0} : DatumGetInt16(given.priority.datum);
  check::priority(field("priority"), m.priority);
  if (m.ordered && m.priority != 0)
    check::fail(field("priority"), std::to_string(m.priority), "must be 0 in an ordered message");
  m.keep = given.keep;
  if (!m.keep.null) {
    const Micros keep = interval_of(m.keep, field("keep"), now);
    check::positive(field("keep"), interval_text(m.keep.datum), keep);
  }
  if (given.after != nullptr && !given.after->empty()) {
    m.after = given.after;
    if (std::find(m.after->begin(), m.after->end(), m.id) != m.after->end())
      check::fail(field("after"), uuid_text(m.id), "must not have the message's own id");
    if (m.two_phase)
      check::fail(field("commit_interval"), interval_text(given.commit_interval.datum),
                  "must be NULL in a message that is sent after others");
  }
  if (!given.dedup_key.null) {
    m.dedup_key = text_view(given.dedup_key.datum);
    check::dedup_key(field("dedup_key"), m.dedup_key, m.channel_name.size() + m.channel_args.size());
  }
  m.channel_key = channel_key(m.channel_name, m.channel_args);
  messages_.push_back(m);
  ids_.push_back(m.id);
}

// Gives each message its sequence number, and each ordered one the message that it follows.
Sender::Links Sender::link() {
  Links links;
  ChannelTails& channels = links.channels;
  std::vector<std::size_t> channel_of(messages_.size());
  for (std::size_t i = 0; i < messages_.size(); ++i)
    if (messages_[i].ordered)
      channel_of[i] =
          channels.find_or_add(messages_[i].channel_key, messages_[i].channel_name, messages_[i].channel_args);
  if (!channels.keys.empty()) {
    lock_appends(channels.keys);
    find_tails(channels);
    refuse_stale_snapshot(channels);
    links.before = channels.tails;
  }
  // New sequence numbers must be above those of all tails, and not below the low-water marks.
  std::int64_t floor = INT64_MIN;
  for (std::size_t c = 0; c < channels.keys.size(); ++c)
    floor = std::max({floor, channels.tails[c].exists ? channels.tails[c].seq : INT64_MIN,
                      channels.starts[c] == low_water::kFirstSeq ? INT64_MIN : channels.starts[c] - 1});
  const Oid sequence = Extension::get().relation("mq_msgs_seq");
  std::int64_t seq = next_seq(sequence);
  if (seq <= floor) {  // the sequence was set back: by hand, or by a restore
    sequences::mend_numbers(floor);
    seq = next_seq(sequence);
  }
  for (std::size_t i = 0; i < messages_.size(); ++i) {
    messages_[i].seq = i == 0 ? seq : next_seq(sequence);
    if (!messages_[i].ordered) continue;
    Tail& tail = channels.tails[channel_of[i]];
    messages_[i].follows = tail.exists ? tail.id : Uuid();
    if (!tail.exists) commit_actions::was_empty(channels.mark_keys[channel_of[i]], messages_[i].seq);
    tail = {messages_[i].id, true, messages_[i].seq};
  }
  return links;
}

void Sender::enter(const Links& links) {
  const ChannelTails& channels = links.channels;
  for (std::size_t c = 0; c < channels.keys.size(); ++c) {
    // No other transaction can remove a tail that this one has appended.
    const Tail& tail = links.before[c];
    const Uuid* own = commit_actions::own_tail(channels.keys[c]);
    if (tail.exists && (own == nullptr || *own != tail.id))
      commit_actions::appended(channels.keys[c], channels.names[c], channels.args[c], tail.id, tail.seq);
  }
  for (std::size_t c = 0; c < channels.keys.size(); ++c)
    commit_actions::set_own_tail(channels.keys[c], channels.tails[c].id);
}

// A message that waits is written as due at infinity, and its attempt_at becomes due_at.
void Sender::find_prerequisites() {
  std::vector<Uuid> ids;
  const std::vector<Uuid>* last = nullptr;
  for (const Checked& m : messages_) {
    if (m.after != nullptr && m.after != last) ids.insert(ids.end(), m.after->begin(), m.after->end());
    if (m.after != nullptr) last = m.after;
  }
  if (ids.empty()) return;
  if (reuses_ids_) prerequisites::reuse(ids_);
  states_ = prerequisites::states_of(ids);
  for (Checked& m : messages_) {
    if (m.after == nullptr) {
      states_.pending.insert(m.id);
      states_.dead.erase(m.id);
      continue;
    }
    m.waits = std::any_of(m.after->begin(), m.after->end(),
                          [&](const Uuid& id) { return states_.pending.contains(id) || states_.dead.contains(id); });
    states_.pending.insert(m.id);
    states_.dead.erase(m.id);
    if (!m.waits) continue;
    m.due_at = m.attempt_at;
    m.attempt_at = kNever;
  }
}

void Sender::write_prerequisites() const {
  std::vector<Prerequisite> pending, dead;
  for (const Checked& m : messages_) {
    if (!m.waits) continue;
    for (const Uuid& id : *m.after) {
      if (states_.pending.contains(id)) pending.push_back({m.id, id});
      if (states_.dead.contains(id)) dead.push_back({m.id, id});
    }
  }
  if (!pending.empty() || !dead.empty()) prerequisites::wait_for(pending, dead);
}

void Sender::announce() const {
  const Micros now = GetCurrentTransactionStartTimestamp();
  commit_actions::RowChanges changes(Extension::msgs());
  for (const Checked& m : messages_) {
    // A worker sees to it that messages expire, whether they have a handler or not.
    if (!m.two_phase)
      expires_at_ == kNever ? commit_actions::wake_handlers(m.channel_name) : commit_actions::wake(m.channel_name);
    if (!m.waits && (!m.ordered || m.follows == Uuid()))
      commit_actions::due(m.channel_name, m.priority, {m.attempt_at, m.seq});
    changes.add(m.channel_name, 1, m.ordered, m.attempt_at > now);
  }
}

#define MESSAGE_COLUMNS                                                                            \
  "(id, attempt_at, attempts, retry_backoff, channel_name, channel_args, commit_interval,"         \
  " after_message_id, channel_key, seq, message_name, message_json, message_bytes, fair, headers," \
  " priority, keep, due_at, expires_at"
#define MESSAGES \
  "SELECT m.*, $14 FROM unnest($1, $6, $7, $8, $9, $10, $11, $12, $5, $13, $2, $3, $4, $15, $16, $17, $18, $19) AS m"
#define MESSAGE_TYPES                                                                                             \
  UUIDARRAYOID, TEXTARRAYOID, JSONBARRAYOID, BYTEAARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID,      \
      INTERVALARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INTERVALARRAYOID, UUIDARRAYOID, INT8ARRAYOID, TIMESTAMPTZOID, \
      BOOLARRAYOID, JSONBARRAYOID, INT2ARRAYOID, INTERVALARRAYOID, TIMESTAMPTZARRAYOID

std::vector<Param> Sender::parameters() const {
  const std::size_t n = messages_.size();
  ArrayParam ids(UUIDOID, n), names(TEXTOID, n), json(JSONBOID, n), bytes(BYTEAOID, n), keys(INT8OID, n),
      times(TIMESTAMPTZOID, n), attempts(INT4OID, n), backoffs(INTERVALOID, n), channels(TEXTOID, n), args(TEXTOID, n),
      intervals(INTERVALOID, n), after(UUIDOID, n), numbers(INT8OID, n), fair(BOOLOID, n), headers(JSONBOID, n),
      priorities(INT2OID, n), keep(INTERVALOID, n), due(TIMESTAMPTZOID, n);
  for (const Checked& m : messages_) {
    ids.add(uuid_datum(m.id));
    names.add(text_datum(m.name));
    json.add(param_of(m.payload_json));
    bytes.add(param_of(m.payload_bytes));
    keys.add(Int64GetDatum(m.channel_key));
    times.add(TimestampTzGetDatum(m.attempt_at));
    attempts.add(Int32GetDatum(m.retries + 1));
    backoffs.add(interval_datum(m.retry_backoff));
    channels.add(text_datum(m.channel_name));
    args.add(text_datum(m.channel_args));
    intervals.add(m.two_phase ? Param(interval_datum(m.commit_interval)) : Param());
    after.add(m.ordered ? Param(uuid_datum(m.follows)) : Param());
    numbers.add(Int64GetDatum(m.seq));
    fair.add(BoolGetDatum(m.fair));
    headers.add(param_of(m.headers));
    priorities.add(Int16GetDatum(m.priority));
    keep.add(param_of(m.keep));
    due.add(m.waits ? Param(TimestampTzGetDatum(m.due_at)) : Param());
  }
  return {ids.datum(),        names.datum(),
          json.datum(),       bytes.datum(),
          keys.datum(),       times.datum(),
          attempts.datum(),   backoffs.datum(),
          channels.datum(),   args.datum(),
          intervals.datum(),  after.datum(),
          numbers.datum(),    expires_at_ == kNever ? Param() : Param(TimestampTzGetDatum(expires_at_)),
          fair.datum(),       headers.datum(),
          priorities.datum(), keep.datum(),
          due.datum()};
}

void Sender::fill(const Checked& m, NewRow& row) const {
  const auto set = [&](ClaimColumn column, Param param) {
    row.values[column] = param.value;
    row.nulls[column] = param.null;
  };
  set(kId, UUIDPGetDatum(reinterpret_cast<const pg_uuid_t*>(m.id.bytes.data())));
  set(kChannelKey, Int64GetDatum(m.channel_key));
  set(kSeq, Int64GetDatum(m.seq));
  set(kAttemptAt, TimestampTzGetDatum(m.attempt_at));
  set(kRetryBackoff, interval_datum(m.retry_backoff));
  set(kChannelName, text_datum(m.channel_name));
  set(kChannelArgs, text_datum(m.channel_args));
  set(kName, text_datum(m.name));
  set(kAttempts, Int32GetDatum(0));
  set(kAttemptsLeft, Int32GetDatum(m.retries + 1));
  set(kAfter, m.ordered ? Param(UUIDPGetDatum(reinterpret_cast<const pg_uuid_t*>(m.follows.bytes.data()))) : Param());
  set(kCommitInterval, m.two_phase ? Param(interval_datum(m.commit_interval)) : Param());
  set(kPayloadJson, param_of(m.payload_json));
  set(kPayloadBytes, param_of(m.payload_bytes));
  set(kExpiresAt, expires_at_ == kNever ? Param() : Param(TimestampTzGetDatum(expires_at_)));
  set(kCreatedAt, TimestampTzGetDatum(GetCurrentTransactionStartTimestamp()));
  set(kLeaseToken, Param());
  set(kThrottledAt, Param());
  set(kDedupKey, Param());
  set(kFair, BoolGetDatum(m.fair));
  set(kHeaders, param_of(m.headers));
  set(kPriority, Int16GetDatum(m.priority));
  set(kKeep, param_of(m.keep));
  set(kDueAt, m.waits ? Param(TimestampTzGetDatum(m.due_at)) : Param());
}

void Sender::choose_fair() {
  const Micros now = GetCurrentTransactionStartTimestamp();
  std::string_view name;  // the last one that was asked for
  bool needs = true;
  for (Checked& m : messages_) {
    m.fair = m.priority == 0;
    if (m.priority != 0 || !m.channel_args.empty() || m.two_phase || m.attempt_at > now) continue;
    if (m.channel_name != name) needs = fairness::needs_entry(name = m.channel_name);
    m.fair = needs;
  }
}

void Sender::note_channels() const {
  std::string_view name;
  for (const Checked& m : messages_)
    if (m.priority == 0 && !m.channel_args.empty() && m.channel_name != name)
      fairness::has_channels(name = m.channel_name);
}

// Throws 53400 for a channel that would have more messages than its max_pending.
void Sender::reserve_room() const {
  // A transaction that has been open for long has not heard of all limits.
  guard::call([] { AcceptInvalidationMessages(); });
  if (!any_limits()) return;
  std::map<std::string_view, std::int64_t> rows;  // sorted, so that two that wait for each other's locks are rare
  for (const Checked& m : messages_) ++rows[m.channel_name];
  for (const auto& [name, count] : rows) pending_limit::reserve(name, count);
}

void Sender::send() {
  static Statement insert("INSERT INTO $S.mq_msgs " MESSAGE_COLUMNS ") " MESSAGES, {MESSAGE_TYPES});
  if (messages_.empty()) return;
  MQ_CRASH_POINT(send_begins);
  reserve_room();
  MQ_CRASH_POINT(send_reserved);
  find_prerequisites();
  const Links links = link();
  MQ_CRASH_POINT(send_linked);
  note_channels();
  choose_fair();
  if (!insert_messages(messages_.size(), [this](std::size_t i, NewRow& row) { fill(messages_[i], row); }))
    insert.run(parameters());
  MQ_CRASH_POINT(send_inserted);
  note_channels();
  enter(links);
  write_prerequisites();
  announce();
  MQ_CRASH_POINT(send_announced);
}

Uuid Sender::send_once() {
  // This session A races with S, which sends the same key. The index mq_msgs_dedup orders them:
  //   1  S: inserts its message.
  //   2  A: find_pending() does not see it; the INSERT waits for S.
  //   3  S: commits (A inserts nothing, and finds S's message) or rolls back (A inserts its own).
  // A waits for nothing else but earlier appends: a message that a handler is about to delete is
  // still visible to find_pending().
  static Statement insert("INSERT INTO $S.mq_msgs " MESSAGE_COLUMNS ", dedup_key) SELECT m.*, $20 FROM (" MESSAGES
                          ") AS m"
                          " ON CONFLICT (channel_key, dedup_key, channel_name, channel_args)"
                          "   WHERE dedup_key IS NOT NULL DO NOTHING",
                          {MESSAGE_TYPES, TEXTOID});
  find_prerequisites();
  const Checked& message = messages_.front();
  const DedupKey wanted{message.channel_key, message.channel_name, message.channel_args, message.dedup_key};
  bool locked = !message.ordered;
  bool reserved = false;
  for (int tries = 0;; ++tries) {
    if (const auto pending = find_pending(wanted, true)) {
      if (reserved) pending_limit::give_back(message.channel_name, 1);
      return *pending;
    }
    // Messages may come and go between search and INSERT, but not so often: a trigger,
    // rule or policy keeps the row out.
    if (tries == kTries) throw refused("mq_msgs", "being added");
    if (!locked) {
      lock_appends({message.channel_key});
      locked = true;
      continue;  // the lock may have waited for a session that sent the same key
    }
    if (!reserved) reserve_room();
    reserved = true;
    const Links links = link();
    note_channels();
    choose_fair();
    std::vector<Param> params = parameters();
    params.emplace_back(text_datum(message.dedup_key));
    if (insert.run(params).empty()) continue;
    MQ_CRASH_POINT(send_once_inserted);
    note_channels();
    enter(links);
    write_prerequisites();
    announce();
    return message.id;
  }
}

}  // namespace mq
