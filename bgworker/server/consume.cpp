// Consuming from outside the server: mq_poll, mq_delete, mq_keep_alive, mq_checkpoint, mq_commit, mq_clear.

#include <algorithm>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "../backoff.hpp"
#include "../check.hpp"
#include "../claim.hpp"
#include "arguments.hpp"
#include "claim_source.hpp"
#include "enabled.hpp"
#include "entries.h"
#include "extension.hpp"
#include "handler_call.hpp"
#include "host.hpp"
#include "ledger.hpp"
#include "refused.hpp"
#include "result_set.hpp"
#include "row_locks.hpp"
#include "settle.hpp"
#include "shared.hpp"
#include "spi.hpp"
#include "sweep.hpp"

extern "C" {
#include "utils/array.h"
#include "utils/jsonb.h"
}

namespace mq {

namespace {

constexpr int kMostPolled = 100000;
// A client that loses its connection and LISTENs anew has missed what was notified in between.
constexpr Micros kLongestWait = 60 * kSecond;
constexpr Micros kShortWait = kSecond / 10;  // said when all that is due is locked by others, or about to be committed

// Sorted, each once: two calls that lock the same rows take them in the same order.
std::vector<Uuid> ids_of(const Value& array, std::string_view field) {
  std::vector<Uuid> ids;
  for (const Datum datum : elements(array, field)) ids.push_back(uuid_of(datum));
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

Datum uuid_array(const std::vector<Uuid>& ids) {
  ArrayParam array(UUIDOID, ids.size());
  for (const Uuid& id : ids) array.add(uuid_datum(id));
  return array.datum();
}

// Hands the messages to the caller: an attempt is charged, and nobody else gets them before the lease is over.
void lease(const Batch& messages, Micros now) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = l.lease_end, retry_backoff = l.backoff, attempts = m.attempts - 1,"
      "       attempt = m.attempt + 1, lease = 0"
      "  FROM unnest($1, $2, $3) AS l (id, lease_end, backoff) WHERE m.id = l.id",
      {UUIDARRAYOID, TIMESTAMPTZARRAYOID, INTERVALARRAYOID});
  if (messages.empty()) return;
  ArrayParam ids(UUIDOID), ends(TIMESTAMPTZOID), backoffs(INTERVALOID);
  for (const Claimed& message : messages) {
    const Micros backoff = bounded_backoff(message.retry_backoff, kBackoffCeiling);
    ids.add(uuid_datum(message.id));
    ends.add(TimestampTzGetDatum(now + backoff));
    backoffs.add(interval_datum(doubled_backoff(backoff, std::max(backoff, kLeaseCeiling))));
    ledger::leased(message.id, now, backoff);
  }
  // All are locked, so nobody else has removed any.
  if (update.run({ids.datum(), ends.datum(), backoffs.datum()}).size() < messages.size())
    throw refused("mq_msgs", "being changed");
}

void add_message(ResultSet& result, const SqlClaimSource& source, const Claimed& message) {
  const ClaimedRow& row = source.row(message);
  const auto column = [&](int n) {
    bool null = false;
    const Datum datum = SPI_getbinval(row.tuple, row.descriptor, n, &null);
    return null ? Param() : Param(datum);
  };
  Param json = column(kPayloadJson);
  if (!json.null)
    json.value = fence::call([&] {
      Jsonb* jsonb = DatumGetJsonbP(json.value);
      return CStringGetTextDatum(JsonbToCString(nullptr, &jsonb->root, VARSIZE(jsonb)));
    });
  result.add({column(kId), BoolGetDatum(true), column(kName), json, column(kPayloadBytes),
              interval_datum(bounded_backoff(message.retry_backoff, kBackoffCeiling)), interval_datum(0)});
}

// Until the next message of these channels is due, at most kLongestWait; NULL: there is none, and who sends one will
// notify.
Param wait_time(SqlClaimSource& source, const std::vector<std::string>& names, Micros now, bool others_commit) {
  std::optional<Micros> earliest;
  for (const std::string& name : names) {
    const auto due = source.next_due(name);
    if (due && (!earliest || *due < *earliest)) earliest = due;
  }
  if (others_commit && (!earliest || *earliest > now + kShortWait)) return interval_datum(kShortWait);
  if (!earliest) return {};
  return interval_datum(*earliest > now ? std::min(*earliest - now, kLongestWait) : kShortWait);
}

// What others hold so that it cannot be removed now is left to whoever comes later. True: there was some.
bool leave_held(Batch& leftovers) {
  static Statement lock("SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1) FOR UPDATE SKIP LOCKED", {UUIDARRAYOID});
  if (leftovers.empty()) return false;
  std::vector<Uuid> ids;
  for (const Claimed& message : leftovers) ids.push_back(message.id);
  const Rows rows = lock.run({uuid_array(ids)});
  std::unordered_set<Uuid, UuidHash> free;
  for (std::size_t i = 0; i < rows.size(); ++i) free.insert(uuid_of(rows.get(i, 1)));
  return std::erase_if(leftovers, [&](const Claimed& message) { return !free.contains(message.id); }) > 0;
}

void poll(const Value& channel_names, int batch_size, ResultSet& result) {
  ServerClock clock;
  SqlClaimSource source;
  Claimer claimer(source, clock);
  const bool others_commit = shared::quiet_commit_under_way();
  shared::note_poll();

  const OwnerScope scope;
  const SpiConnection spi;
  bool left_alone = !enabled::here();
  std::vector<std::string> names;
  std::optional<row_locks::Removal> avoiding;  // a claim that found nothing but what others hold is made again without
  for (bool repaired = left_alone;;) {
    if (left_alone) source.leave_undeliverable();
    names = channel_names.null ? source.channel_names() : names_of(channel_names, "channel_names");
    std::vector<Source> sources;
    sources.reserve(names.size());
    for (const std::string& name : names) sources.push_back({name, batch_size});

    Claim claim = claimer.claim(sources, batch_size, false);
    // Of a dump that has been restored a moment ago the payload may still come.
    const bool incomplete = std::any_of(claim.leftovers.begin(), claim.leftovers.end(),
                                        [](const Claimed& message) { return !message.has_payload; });
    if (incomplete && !enabled::here_at_last()) {
      left_alone = repaired = true;
      continue;
    }
    if (leave_held(claim.leftovers) && claim.messages.empty() && claim.leftovers.empty() && !avoiding) {
      avoiding.emplace(true);
      continue;
    }
    if (!claim.leftovers.empty()) {
      const row_locks::Removal removal(true);
      Settlement settlement;
      dispose(claim.leftovers, clock.now(), settlement);
      SqlSettler().settle(settlement);
    }
    if (!claim.messages.empty()) {
      std::sort(claim.messages.begin(), claim.messages.end(), [](const Claimed& a, const Claimed& b) {
        return a.attempt_at != b.attempt_at ? a.attempt_at < b.attempt_at : a.place < b.place;
      });
      for (const Claimed& message : claim.messages) add_message(result, source, message);
      lease(claim.messages, clock.now());
      return;
    }
    // What cannot be delivered is out of the way now: look again, as somebody's message may be behind it.
    if (!claim.leftovers.empty()) continue;
    if (repaired) break;
    const bool overlooked = source.overlooked();
    const bool followed = follow_clock(names, clock.now());
    if (!repair_heads() && !overlooked && !followed) break;
    repaired = true;
  }
  result.add(
      {Param(), Param(), Param(), Param(), Param(), Param(), wait_time(source, names, clock.now(), others_commit)});
}

void keep_alive(const std::vector<Uuid>& ids, Micros duration) {
  // A two-phase message keeps its due time: its commit interval grows by what its expiry does.
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = $2,"
      "   commit_interval = m.commit_interval"
      "     + pg_catalog.make_interval(secs => EXTRACT(epoch FROM $2 - m.attempt_at)::float8)"
      " WHERE m.id = ANY ($1) AND m.attempt_at < $2",
      {UUIDARRAYOID, TIMESTAMPTZOID});
  note_changed(ids);
  update.run({uuid_array(ids), TimestampTzGetDatum(GetCurrentTimestamp() + duration)});
}

std::vector<Uuid> commit_messages(const std::vector<Uuid>& ids) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = LEAST(m.attempt_at - m.commit_interval, m.expires_at),"
      "   commit_interval = NULL"
      " WHERE m.id = ANY ($1) AND m.commit_interval IS NOT NULL AND m.attempt_at > pg_catalog.clock_timestamp()"
      " RETURNING m.id, m.channel_name, m.attempt_at, m.place",
      {UUIDARRAYOID});
  const Rows rows = update.run({uuid_array(ids)});
  std::vector<Uuid> committed;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    committed.push_back(uuid_of(rows.get(i, 1)));
    const std::string_view channel_name = text_view(rows.get(i, 2));
    ledger::wake(channel_name);
    ledger::due(channel_name, {DatumGetTimestampTz(rows.get(i, 3)), DatumGetInt64(rows.get(i, 4))});
  }
  return committed;
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_poll_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
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
  return mq::fence::entry([&] {
    mq::refuse_read_only("mq_delete()");
    const std::vector<mq::Uuid> ids = mq::ids_of(mq::argument(fcinfo, 0), "msg_ids");
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::note_changed(ids);
    mq::remove_messages(ids, true);
    return Datum{0};
  });
}

extern "C" Datum mq_keep_alive_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
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
  return mq::fence::entry([&] {
    mq::refuse_read_only("mq_checkpoint()");
    const mq::Value id = mq::argument(fcinfo, 0);
    if (id.null) mq::check::fail_null("msg_id");
    const mq::Micros duration = mq::interval_of(mq::argument(fcinfo, 1), "duration", GetCurrentTimestamp());
    const int retries = PG_ARGISNULL(4) ? 0 : PG_GETARG_INT32(4);
    if (retries != 0) mq::check::retries("extra_retries", retries);
    mq::Param json;
    if (!PG_ARGISNULL(2)) json = mq::json_of(mq::text_view(PG_GETARG_DATUM(2)), "new_payload_json");
    const mq::Param bytes = PG_ARGISNULL(3) ? mq::Param() : mq::Param(PG_GETARG_DATUM(3));

    // Whoever has it locked handles it, or is about to settle it. What is locked here nobody claims before the commit.
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
        "UPDATE $S.mq_payloads p SET payload_json = COALESCE($2, p.payload_json),"
        "   payload_bytes = COALESCE($3, p.payload_bytes) WHERE p.id = $1",
        {UUIDOID, JSONBOID, BYTEAOID});
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    const mq::Rows locked = lock.run({id.datum});
    if (locked.empty()) return Datum{0};
    // What comes after this begins elsewhere. A first attempt has no crash behind it.
    if (DatumGetBool(locked.get(0, 1))) forgive.run({id.datum});
    mq::keep_alive({mq::uuid_of(id.datum)}, duration);
    if (retries != 0) add_retries.run({id.datum, Int32GetDatum(retries)});
    if (!json.null || !bytes.null) replace.run({id.datum, json, bytes});
    return Datum{0};
  });
}

extern "C" Datum mq_commit_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::refuse_read_only("mq_commit()");
    const std::vector<mq::Uuid> ids = mq::ids_of(mq::argument(fcinfo, 0), "msg_ids");
    std::vector<mq::Uuid> committed;
    {
      const mq::OwnerScope scope;
      const mq::SpiConnection spi;
      committed = mq::commit_messages(ids);
    }
    // In the order given, each once.
    std::unordered_set<mq::Uuid, mq::UuidHash> left(committed.begin(), committed.end());
    std::vector<mq::Uuid> result;
    for (const Datum datum : mq::elements(mq::argument(fcinfo, 0), "msg_ids"))
      if (left.erase(mq::uuid_of(datum)) != 0) result.push_back(mq::uuid_of(datum));
    return mq::uuid_array(result);
  });
}

extern "C" Datum mq_clear_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::refuse_read_only("mq_clear()");
    const mq::Value names = mq::argument(fcinfo, 0);
    for (const Datum name : mq::elements(names, "channel_names")) mq::note_changed(mq::text_view(name));
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::clear_messages(names.datum);
    return Datum{0};
  });
}

extern "C" Datum mq_clear_all_entry(FunctionCallInfo) {
  return mq::fence::entry([] {
    mq::refuse_read_only("mq_clear_all()");
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::note_any_changed();
    mq::clear_messages({});
    return Datum{0};
  });
}
