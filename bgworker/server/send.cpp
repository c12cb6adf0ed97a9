#include "send.hpp"

#include <fmt/core.h>

#include <array>
#include <optional>
#include <string>

#include "../channel_key.hpp"
#include "../check.hpp"
#include "../uuid.hpp"
#include "arguments.hpp"
#include "dedup.hpp"
#include "entries.h"
#include "extension.hpp"
#include "ledger.hpp"
#include "locks.hpp"
#include "marks.hpp"
#include "refused.hpp"
#include "result_set.hpp"
#include "sequences.hpp"
#include "spi.hpp"
#include "tails.hpp"

extern "C" {
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"
#include "utils/uuid.h"
}

namespace mq {

namespace {

Uuid new_id() {
  std::array<std::uint8_t, 10> random{};
  if (!pg_strong_random(random.data(), random.size())) throw Error("XX000", "could not generate random values");
  constexpr std::int64_t kEpoch = (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * std::int64_t{SECS_PER_DAY} * 1000;
  return uuid_v7(GetCurrentTimestamp() / 1000 + kEpoch, random);
}

constexpr int kTries = 1000;

std::int64_t next_place(Oid sequence) {
  return fence::call([&] { return nextval_internal(sequence, false); });
}

}  // namespace

struct Sender::Links {
  ChannelTails channels;
  std::vector<Tail> before;  // their tails as they were
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
  if (!given.dedup_key.null) {
    m.dedup_key = text_view(given.dedup_key.datum);
    check::dedup_key(field("dedup_key"), m.dedup_key, m.channel_name.size() + m.channel_args.size());
  }
  m.channel_key = channel_key(m.channel_name, m.channel_args);
  messages_.push_back(m);
  ids_.push_back(m.id);
}

// Gives each message its place, and each ordered one the message that it follows.
Sender::Links Sender::link() {
  Links links;
  ChannelTails& channels = links.channels;
  std::vector<std::size_t> channel_of(messages_.size());
  for (std::size_t i = 0; i < messages_.size(); ++i)
    if (messages_[i].ordered)
      channel_of[i] =
          channels.find_or_add(messages_[i].channel_key, messages_[i].channel_name, messages_[i].channel_args);
  if (!channels.keys.empty()) {
    locks::lock_appends(channels.keys);
    find_tails(channels);
    refuse_stale_snapshot(channels);
    links.before = channels.tails;
  }
  std::int64_t floor = INT64_MIN;  // of places that keep the order
  for (std::size_t c = 0; c < channels.keys.size(); ++c)
    floor = std::max({floor, channels.tails[c].exists ? channels.tails[c].place : INT64_MIN,
                      channels.starts[c] == marks::kFirstPlace ? INT64_MIN : channels.starts[c] - 1});
  const Oid sequence = Extension::get().relation("mq_place_seq");
  std::int64_t place = next_place(sequence);
  if (place <= floor) {  // somebody has set the sequence back
    sequences::mend_places(floor);
    place = next_place(sequence);
  }
  for (std::size_t i = 0; i < messages_.size(); ++i) {
    messages_[i].place = i == 0 ? place : next_place(sequence);
    if (!messages_[i].ordered) continue;
    Tail& tail = channels.tails[channel_of[i]];
    messages_[i].after = tail.exists ? tail.id : Uuid();
    if (!tail.exists) ledger::was_empty(channels.mark_keys[channel_of[i]], messages_[i].place);
    tail = {messages_[i].id, true, messages_[i].place};
  }
  return links;
}

void Sender::enter(const Links& links) {
  const ChannelTails& channels = links.channels;
  for (std::size_t c = 0; c < channels.keys.size(); ++c) {
    // Nobody but this transaction can remove what it appended itself.
    const Tail& tail = links.before[c];
    const Uuid* own = ledger::own_tail(channels.keys[c]);
    if (tail.exists && (own == nullptr || *own != tail.id))
      ledger::appended(channels.keys[c], channels.names[c], channels.args[c], tail.id);
  }
  for (std::size_t c = 0; c < channels.keys.size(); ++c) ledger::set_own_tail(channels.keys[c], channels.tails[c].id);
}

void Sender::announce() const {
  const Micros now = GetCurrentTransactionStartTimestamp();
  ledger::RowChanges changes(Extension::msgs());
  for (const Checked& m : messages_) {
    if (!m.two_phase) ledger::wake(m.channel_name);
    if (!m.ordered || m.after == Uuid()) ledger::due(m.channel_name, {m.attempt_at, m.place});
    changes.add(m.channel_name, 1, m.ordered, m.attempt_at > now);
  }
}

#define MESSAGE_COLUMNS                                                                    \
  "(id, attempt_at, attempts, retry_backoff, channel_name, channel_args, commit_interval," \
  " after_message_id, channel_key, place, expires_at"
#define MESSAGES "SELECT m.*, $14 FROM unnest($1, $6, $7, $8, $9, $10, $11, $12, $5, $13) AS m"
#define PAYLOADS                                                                    \
  "INSERT INTO $S.mq_payloads (id, name, payload_json, payload_bytes, channel_key)" \
  " SELECT p.id, p.name, p.json, p.bytes, p.key FROM unnest($1, $2, $3, $4, $5) AS p (id, name, json, bytes, key)"
#define MESSAGE_TYPES                                                                                        \
  UUIDARRAYOID, TEXTARRAYOID, JSONBARRAYOID, BYTEAARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID, INT4ARRAYOID, \
      INTERVALARRAYOID, TEXTARRAYOID, TEXTARRAYOID, INTERVALARRAYOID, UUIDARRAYOID, INT8ARRAYOID, TIMESTAMPTZOID

std::vector<Param> Sender::parameters() const {
  const std::size_t n = messages_.size();
  ArrayParam ids(UUIDOID, n), names(TEXTOID, n), json(JSONBOID, n), bytes(BYTEAOID, n), keys(INT8OID, n),
      times(TIMESTAMPTZOID, n), attempts(INT4OID, n), backoffs(INTERVALOID, n), channels(TEXTOID, n), args(TEXTOID, n),
      intervals(INTERVALOID, n), after(UUIDOID, n), places(INT8OID, n);
  for (const Checked& m : messages_) {
    ids.add(uuid_datum(m.id));
    names.add(text_datum(m.name));
    json.add(m.payload_json.null ? Param() : Param(m.payload_json.datum));
    bytes.add(m.payload_bytes.null ? Param() : Param(m.payload_bytes.datum));
    keys.add(Int64GetDatum(m.channel_key));
    times.add(TimestampTzGetDatum(m.attempt_at));
    attempts.add(Int32GetDatum(m.retries + 1));
    backoffs.add(interval_datum(m.retry_backoff));
    channels.add(text_datum(m.channel_name));
    args.add(text_datum(m.channel_args));
    intervals.add(m.two_phase ? Param(interval_datum(m.commit_interval)) : Param());
    after.add(m.ordered ? Param(uuid_datum(m.after)) : Param());
    places.add(Int64GetDatum(m.place));
  }
  return {ids.datum(),       names.datum(),
          json.datum(),      bytes.datum(),
          keys.datum(),      times.datum(),
          attempts.datum(),  backoffs.datum(),
          channels.datum(),  args.datum(),
          intervals.datum(), after.datum(),
          places.datum(),    expires_at_ == kNever ? Param() : Param(TimestampTzGetDatum(expires_at_))};
}

void Sender::send() {
  static Statement insert("WITH payloads AS (" PAYLOADS ") INSERT INTO $S.mq_msgs " MESSAGE_COLUMNS ") " MESSAGES,
                          {MESSAGE_TYPES});
  if (messages_.empty()) return;
  const Links links = link();
  insert.run(parameters());
  enter(links);
  announce();
}

Uuid Sender::send_once() {
  // Waits for a transaction that is sending the same, and for nothing else but an append before this one: what is
  // there is found by looking first, though a handler that runs is about to delete it.
  static Statement insert("WITH messages AS (INSERT INTO $S.mq_msgs " MESSAGE_COLUMNS
                          ", dedup_key) SELECT m.*, $15 FROM (" MESSAGES
                          ") AS m"
                          "   ON CONFLICT (channel_key, dedup_key, channel_name, channel_args)"
                          "     WHERE dedup_key IS NOT NULL DO NOTHING RETURNING id),"
                          " payloads AS (" PAYLOADS
                          " JOIN messages USING (id))"
                          " SELECT id FROM messages",
                          {MESSAGE_TYPES, TEXTOID});
  const Checked& message = messages_.front();
  const DedupKey wanted{message.channel_key, message.channel_name, message.channel_args, message.dedup_key};
  bool locked = !message.ordered;
  for (int tries = 0;; ++tries) {
    if (const auto pending = find_pending(wanted, true)) return *pending;
    // Others may send the same and be done with it, but not so often between two looks.
    if (tries == kTries) throw refused("mq_msgs", "being added");
    if (!locked) {
      locks::lock_appends({message.channel_key});
      locked = true;
      continue;  // that may have waited for one who sent the same
    }
    const Links links = link();
    std::vector<Param> params = parameters();
    params.emplace_back(text_datum(message.dedup_key));
    if (insert.run(params).empty()) continue;
    enter(links);
    announce();
    return message.id;
  }
}

namespace {

// The attributes of mq_new_t, by their names: somebody may have made the type with more.
NewMessage new_message(Datum composite) {
  constexpr int kAttributes = 11;
  struct Deformed {
    Datum values[kAttributes];
    bool nulls[kAttributes];
  };
  const Deformed d = fence::call([&] {
    Deformed result;
    HeapTupleHeader header = DatumGetHeapTupleHeader(composite);
    TupleDesc descriptor = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header), HeapTupleHeaderGetTypMod(header));
    HeapTupleData tuple;
    tuple.t_len = HeapTupleHeaderGetDatumLength(header);
    ItemPointerSetInvalid(&tuple.t_self);
    tuple.t_tableOid = InvalidOid;
    tuple.t_data = header;
    if (descriptor->natts == kAttributes) {
      heap_deform_tuple(&tuple, descriptor, result.values, result.nulls);
    } else {
      for (int i = 0; i < kAttributes; ++i) result.nulls[i] = true;
    }
    ReleaseTupleDesc(descriptor);
    return result;
  });
  const auto at = [&](int i) { return Value{d.values[i], d.nulls[i]}; };
  return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10)};
}

struct Elements {
  Datum* values;
  bool* nulls;
  int count;
};

Elements elements_of(Datum array) {
  return fence::call([&] {
    Elements e{nullptr, nullptr, 0};
    ArrayType* a = DatumGetArrayTypeP(array);
    int16 length = 0;
    bool by_value = false;
    char align = 0;
    get_typlenbyvalalign(ARR_ELEMTYPE(a), &length, &by_value, &align);
    deconstruct_array(a, ARR_ELEMTYPE(a), length, by_value, align, &e.values, &e.nulls, &e.count);
    return e;
  });
}

// The arguments that mq_send and mq_send_many share, from the `name` argument on.
NewMessage common_arguments(FunctionCallInfo fcinfo, int name = 2) {
  NewMessage message;
  message.channel_name = argument(fcinfo, 0);
  message.name = PG_ARGISNULL(name) ? argument(fcinfo, 0) : argument(fcinfo, name);
  message.channel_args = argument(fcinfo, name + 1);
  message.ordered = argument(fcinfo, name + 2);
  message.delay = argument(fcinfo, name + 3);
  message.retries = argument(fcinfo, name + 4);
  message.retry_backoff = argument(fcinfo, name + 5);
  message.commit_interval = argument(fcinfo, name + 6);
  message.payload_bytes = argument(fcinfo, name + 7);
  return message;
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_insert_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::refuse_read_only("mq_insert()");
    if (PG_ARGISNULL(0)) mq::check::fail_null("new_messages");
    const mq::Elements elements = mq::elements_of(PG_GETARG_DATUM(0));
    mq::Sender sender(mq::Sender::Json::kText, true);
    for (int i = 0; i < elements.count; ++i) {
      if (elements.nulls[i]) mq::check::fail_null(mq::check::element_of("new_messages", i + 1));
      sender.add(mq::new_message(elements.values[i]));
    }
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    sender.send();
    return Datum{0};
  });
}

extern "C" Datum mq_send_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::refuse_read_only("mq_send()");
    mq::NewMessage message = mq::common_arguments(fcinfo);
    message.payload_json = mq::argument(fcinfo, 1);
    Datum id = PG_ARGISNULL(10) ? mq::uuid_datum(mq::new_id()) : PG_GETARG_DATUM(10);
    message.id = {id, false};
    message.dedup_key = mq::argument(fcinfo, 11);
    mq::Sender sender(mq::Sender::Json::kJsonb, false);
    if (!PG_ARGISNULL(12)) sender.expire_after(PG_GETARG_DATUM(12));
    sender.add(message);
    mq::Uuid sent = sender.ids().front();
    {
      const mq::OwnerScope scope;
      const mq::SpiConnection spi;
      if (message.dedup_key.null)
        sender.send();
      else
        sent = sender.send_once();
    }
    if (sent != sender.ids().front()) id = mq::uuid_datum(sent);
    return id;
  });
}

extern "C" Datum mq_send_once_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::refuse_read_only("mq_send_once()");
    if (PG_ARGISNULL(1)) mq::check::fail_null("dedup_key");
    mq::NewMessage message = mq::common_arguments(fcinfo, 3);
    message.dedup_key = mq::argument(fcinfo, 1);
    message.payload_json = mq::argument(fcinfo, 2);
    message.id = {mq::uuid_datum(mq::new_id()), false};
    mq::Sender sender(mq::Sender::Json::kJsonb, false);
    if (!PG_ARGISNULL(11)) sender.expire_after(PG_GETARG_DATUM(11));
    sender.add(message);
    mq::Uuid id;
    {
      const mq::OwnerScope scope;
      const mq::SpiConnection spi;
      id = sender.send_once();
    }
    const Datum datum = mq::uuid_datum(id);
    const bool sent = id == sender.ids().front();
    return mq::fence::call([&] {
      TupleDesc descriptor = nullptr;
      if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "return type must be a row type");
      Datum values[2] = {datum, BoolGetDatum(sent)};
      bool nulls[2] = {false, false};
      return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls));
    });
  });
}

extern "C" Datum mq_send_many_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::refuse_read_only("mq_send_many()");
    if (PG_ARGISNULL(1)) mq::check::fail_null("payloads");
    mq::ResultSet result(fcinfo);
    const mq::Elements elements = mq::elements_of(PG_GETARG_DATUM(1));
    mq::NewMessage message = mq::common_arguments(fcinfo);
    mq::Sender sender(mq::Sender::Json::kJsonb, false);
    if (!PG_ARGISNULL(10)) sender.expire_after(PG_GETARG_DATUM(10));
    for (int i = 0; i < elements.count; ++i) {
      message.payload_json = {elements.values[i], elements.nulls[i]};
      message.id = {mq::uuid_datum(mq::new_id()), false};
      sender.add(message);
    }
    {
      const mq::OwnerScope scope;
      const mq::SpiConnection spi;
      sender.send();
    }
    for (const mq::Uuid& id : sender.ids()) result.add({mq::uuid_datum(id)});
    return Datum{0};
  });
}

extern "C" Datum mq_channel_key_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    return Int64GetDatum(mq::channel_key(mq::text_view(PG_GETARG_DATUM(0)), mq::text_view(PG_GETARG_DATUM(1))));
  });
}
