// Consuming from outside the server: mq_poll, mq_delete, mq_keep_alive, mq_checkpoint, mq_commit,
// mq_clear and mq_clear_all.
//
// Sessions and handlers call them through mq.c; a transactional handler may not call mq_poll. The
// file owns no state. Row locks hold messages to the end of the transaction, then the lease does.

#include <algorithm>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/locks.hpp"
#include "pg/refused_rows.hpp"
#include "pg/result_set.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/backoff.hpp"
#include "queue/commit_actions.hpp"
#include "queue/consumer_claim.hpp"
#include "queue/current_call.hpp"
#include "queue/due.hpp"
#include "queue/find.hpp"
#include "queue/lease.hpp"
#include "queue/removal.hpp"
#include "shmem/consumers.hpp"

extern "C" {
#include "utils/array.h"
#include "utils/jsonb.h"
}

namespace mq {

namespace {

constexpr int kMostPolled = 100000;
// The longest wait that mq_poll tells a consumer. A client that loses its connection and LISTENs
// anew has missed the notifications in between.
constexpr Micros kLongestWait = 60 * kSecond;
// The wait when other sessions have locked all that is due, or are about to commit messages.
constexpr Micros kShortWait = kSecond / 10;

// The ids, sorted and without duplicates: two calls that lock the same rows take them in one order.
std::vector<Uuid> ids_of(const Value& array, std::string_view field) {
  std::vector<Uuid> ids;
  for (const Datum datum : elements(array, field)) ids.push_back(uuid_of(datum));
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

// Leases the messages to the caller for their retry backoff, which each lease doubles, and charges
// an attempt. No other consumer or worker gets them before the lease ends.
void lease(const Batch& messages, Micros now) {
  std::vector<NewLease> leases;
  for (const Claimed& message : messages) {
    const Micros backoff = bounded_backoff(message.retry_backoff, kBackoffCeiling);
    leases.push_back({&message, now + backoff, doubled_backoff(backoff, std::max(backoff, kLeaseCeiling))});
    commit_actions::leased(message.id, now, backoff, 0);
  }
  lease(leases, 0);
}

void add_message(ResultSet& result, const Claimed& message) {
  Param json;
  if (message.payload_json != nullptr)
    json = guard::call([&] {
      Jsonb* jsonb = DatumGetJsonbP(PointerGetDatum(message.payload_json));
      return CStringGetTextDatum(JsonbToCString(nullptr, &jsonb->root, VARSIZE(jsonb)));
    });
  result.add({uuid_datum(message.id), BoolGetDatum(true), text_datum(message.name), json,
              message.payload_bytes == nullptr ? Param() : Param(PointerGetDatum(message.payload_bytes)),
              interval_datum(bounded_backoff(message.retry_backoff, kBackoffCeiling)), interval_datum(0)});
}

// How long the consumer should wait: until the next message of these channel names is due, at most
// kLongestWait. NULL: no message is due at any time, and the next sender notifies.
Param wait_time(const std::vector<std::string>& names, Micros now, bool others_commit) {
  std::optional<Micros> earliest;
  for (const std::string& name : names) {
    const auto due = next_due(name);
    if (due && (!earliest || *due < *earliest)) earliest = due;
  }
  if (others_commit && (!earliest || *earliest > now + kShortWait)) return interval_datum(kShortWait);
  if (!earliest) return {};
  return interval_datum(*earliest > now ? std::min(*earliest - now, kLongestWait) : kShortWait);
}

void poll(const Value& channel_names, int batch_size, ResultSet& result) {
  ServerClock clock;
  // The claim below may not see the messages of a commit that sends no NOTIFY. Then the consumer is
  // told to come again soon. Read before the claim, so that a commit that ends in between counts.
  const bool others_commit = shared::unnotified_commit_under_way();
  shared::note_poll();

  const OwnerScope scope;
  const SpiConnection spi;
  std::vector<std::string> names;
  ConsumerClaim consumer(clock);
  Claim claim = consumer.run(
      [&](Claimer&) {
        names = channel_names.null ? mq::channel_names() : names_of(channel_names, "channel_names");
        std::vector<Source> sources;
        sources.reserve(names.size());
        for (const std::string& name : names) sources.push_back({name, batch_size});
        return sources;
      },
      batch_size, true);
  if (!claim.messages.empty()) {
    std::sort(claim.messages.begin(), claim.messages.end(), [](const Claimed& a, const Claimed& b) {
      if (a.priority != b.priority) return a.priority > b.priority;
      return a.attempt_at != b.attempt_at ? a.attempt_at < b.attempt_at : a.seq < b.seq;
    });
    for (const Claimed& message : claim.messages) add_message(result, message);
    lease(claim.messages, clock.now());
    return;
  }
  result.add({Param(), Param(), Param(), Param(), Param(), Param(),
              wait_time(names, clock.now(), others_commit || consumer.left_notes())});
}

void keep_alive(const std::vector<Uuid>& ids, Micros duration) {
  // A two-phase message keeps its due time, which is attempt_at minus its commit interval.
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = $2, throttled_at = NULL,"
      "   commit_interval = m.commit_interval"
      "     + pg_catalog.make_interval(secs => EXTRACT(epoch FROM $2 - m.attempt_at)::float8)"
      " WHERE m.id = ANY ($1) AND m.attempt_at < $2",
      {UUIDARRAYOID, TIMESTAMPTZOID});
  note_changed(ids);
  wait_for_claims(ids);
  update.run({uuid_array(ids), TimestampTzGetDatum(GetCurrentTimestamp() + duration)});
}

std::vector<Uuid> commit_messages(const std::vector<Uuid>& ids) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = LEAST(m.attempt_at - m.commit_interval, m.expires_at),"
      "   commit_interval = NULL"
      " WHERE m.id = ANY ($1) AND m.commit_interval IS NOT NULL AND m.attempt_at > pg_catalog.clock_timestamp()"
      " RETURNING m.id, m.channel_name, m.attempt_at, m.seq, m.priority",
      {UUIDARRAYOID});
  const Rows rows = update.run({uuid_array(ids)});
  std::vector<Uuid> committed;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    committed.push_back(uuid_of(rows.get(i, 1)));
    const std::string_view channel_name = text_view(rows.get(i, 2));
    commit_actions::wake(channel_name);
    commit_actions::due(channel_name, DatumGetInt16(rows.get(i, 5)),
                        {DatumGetTimestampTz(rows.get(i, 3)), DatumGetInt64(rows.get(i, 4))});
  }
  return committed;
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_poll_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_poll()");
    mq::refuse_in_handler("mq_poll");
    const int batch_size = mq::int_of(mq::argument(fcinfo, 1), "batch_size");
    mq::check::count("batch_size", batch_size, 1, mq::kMostPolled);
    mq::ResultSet result(fcinfo);
    mq::poll(mq::argument(fcinfo, 0), batch_size, result);
    return Datum{0};
  });
}

extern "C" Datum mq_delete_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_delete()");
    const std::vector<mq::Uuid> ids = mq::ids_of(mq::argument(fcinfo, 0), "msg_ids");
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::locks::lock_to_write(mq::Extension::msgs());
    mq::note_changed(ids);
    mq::wait_for_claims(ids);
    mq::remove_messages(ids, true);
    return Datum{0};
  });
}

extern "C" Datum mq_keep_alive_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_keep_alive()");
    const std::vector<mq::Uuid> ids = mq::ids_of(mq::argument(fcinfo, 0), "msg_ids");
    const mq::Micros duration = mq::interval_of(mq::argument(fcinfo, 1), "duration", GetCurrentTimestamp());
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::keep_alive(ids, duration);
    return Datum{0};
  });
}

extern "C" Datum mq_checkpoint_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_checkpoint()");
    const mq::Value id = mq::argument(fcinfo, 0);
    if (id.null) mq::check::fail_null("msg_id");
    const mq::Micros duration = mq::interval_of(mq::argument(fcinfo, 1), "duration", GetCurrentTimestamp());
    const int retries = PG_ARGISNULL(4) ? 0 : PG_GETARG_INT32(4);
    if (retries != 0) mq::check::retries("extra_retries", retries);
    mq::Param json;
    if (!PG_ARGISNULL(2)) json = mq::json_of(mq::text_view(PG_GETARG_DATUM(2)), "new_payload_json");
    const mq::Param bytes = PG_ARGISNULL(3) ? mq::Param() : mq::Param(PG_GETARG_DATUM(3));

    // Waits for another session that handles or settles the message. The lock keeps claims from it
    // until this transaction ends. The column: there was an attempt before the one that runs.
    static mq::Statement lock(
        "SELECT m.attempt > CASE WHEN m.lease IS NULL THEN 0 ELSE 1 END FROM $S.mq_msgs m WHERE m.id = $1 FOR NO KEY "
        "UPDATE",
        {UUIDOID});
    static mq::Statement forgive("UPDATE $S.mq_failures f SET crash = false WHERE f.message_id = $1 AND f.crash",
                                 {UUIDOID});
    static mq::Statement add_retries(
        "UPDATE $S.mq_msgs m SET attempts = LEAST(m.attempts::bigint + $2, 2147483647)::int WHERE m.id = $1",
        {UUIDOID, INT4OID});
    static mq::Statement replace(
        "UPDATE $S.mq_msgs m SET message_json = COALESCE($2, m.message_json),"
        "   message_bytes = COALESCE($3, m.message_bytes) WHERE m.id = $1 AND m.attempt_at IS NOT NULL",
        {UUIDOID, JSONBOID, BYTEAOID});
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::locks::lock_to_write(mq::Extension::msgs());
    mq::wait_for_claims({mq::uuid_of(id.datum)});
    const mq::Rows locked = lock.run({id.datum});
    if (locked.empty()) return Datum{0};
    // Later attempts begin from another point: crashes before this one no longer count.
    if (DatumGetBool(locked.get(0, 1))) forgive.run({id.datum});
    mq::keep_alive({mq::uuid_of(id.datum)}, duration);
    std::size_t kept = 0;
    if (retries != 0 && add_retries.run({id.datum, Int32GetDatum(retries)}).empty()) ++kept;
    if ((!json.null || !bytes.null) && replace.run({id.datum, json, bytes}).empty()) ++kept;
    if (kept > 0 && mq::may_refuse(mq::Extension::msgs())) throw mq::refused("mq_msgs", "being changed");
    return Datum{0};
  });
}

extern "C" Datum mq_commit_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_commit()");
    const std::vector<mq::Uuid> ids = mq::ids_of(mq::argument(fcinfo, 0), "msg_ids");
    std::vector<mq::Uuid> committed;
    {
      const mq::OwnerScope scope;
      const mq::SpiConnection spi;
      committed = mq::commit_messages(ids);
    }
    // In the order of the argument, without duplicates.
    std::unordered_set<mq::Uuid, mq::UuidHash> left(committed.begin(), committed.end());
    std::vector<mq::Uuid> result;
    for (const Datum datum : mq::elements(mq::argument(fcinfo, 0), "msg_ids"))
      if (left.erase(mq::uuid_of(datum)) != 0) result.push_back(mq::uuid_of(datum));
    return mq::uuid_array(result);
  });
}

extern "C" Datum mq_clear_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_clear()");
    const mq::Value names = mq::argument(fcinfo, 0);
    for (const Datum name : mq::elements(names, "channel_names")) mq::note_changed(mq::text_view(name));
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::locks::lock_to_write(mq::Extension::msgs());
    mq::wait_for_claims_of(names.datum);
    mq::clear_messages(names.datum);
    return Datum{0};
  });
}

extern "C" Datum mq_clear_all_entry(FunctionCallInfo) {
  return mq::guard::entry([] {
    mq::refuse_read_only("mq_clear_all()");
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::locks::lock_to_write(mq::Extension::msgs());
    mq::note_any_changed();
    mq::wait_for_claims_of({});
    mq::clear_messages({});
    return Datum{0};
  });
}
