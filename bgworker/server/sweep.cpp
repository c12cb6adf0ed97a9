#include "sweep.hpp"

#include <vector>

#include "../claim.hpp"
#include "extension.hpp"
#include "ledger.hpp"
#include "link.hpp"
#include "settings.h"
#include "settle.hpp"
#include "tally.hpp"

namespace mq {

namespace {

constexpr std::size_t kStep = 500;  // rows that a step looks at, of each kind

bool bury(const Batch& batch, Micros now) {
  if (batch.empty()) return false;
  Settlement settlement;
  dispose(batch, now, settlement);
  SqlSettler().settle(settlement);
  return true;
}

bool bury_spent(SqlClaimSource& source, Micros now) {
  Batch batch;
  source.spent(now, static_cast<int>(kStep), batch);
  return bury(batch, now);
}

// A message that blocks its channel has a dead letter; if somebody deleted that, the channel goes on.
bool unblock() {
  static Statement abandoned(
      "SELECT m.id FROM $S.mq_msgs m WHERE m.attempts <= 0 AND m.attempt_at IS NULL"
      "   AND NOT EXISTS (SELECT 1 FROM $S.mq_dead d WHERE d.id = m.id)"
      " LIMIT $1 FOR UPDATE SKIP LOCKED",
      {INT8OID});
  const Rows rows = abandoned.run({Int64GetDatum(kStep)});
  std::vector<Uuid> ids;
  for (std::size_t i = 0; i < rows.size(); ++i) ids.push_back(uuid_of(rows.get(i, 1)));
  remove_messages(ids);
  return !ids.empty();
}

void remove_orphan_payloads() {
  static Uuid behind;  // where the step before ended
  static Statement page(
      "WITH page AS (SELECT p.id FROM $S.mq_payloads p WHERE p.id > $1 ORDER BY p.id LIMIT $2),"
      "     orphans AS (DELETE FROM $S.mq_payloads o USING page WHERE o.id = page.id"
      "                   AND NOT EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = page.id))"
      " SELECT page.id FROM page ORDER BY page.id DESC LIMIT 1",
      {UUIDOID, INT8OID});
  const Rows rows = page.run({uuid_datum(behind), Int64GetDatum(kStep)});
  behind = rows.empty() ? Uuid() : uuid_of(rows.get(0, 1));
}

// True: there is more of it.
bool forget_old() {
  static Statement dead(
      "DELETE FROM $S.mq_dead WHERE dead_no IN (SELECT d.dead_no FROM $S.mq_dead d"
      "   WHERE d.died_at < pg_catalog.clock_timestamp() - $1"
      "     AND NOT EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = d.id AND m.attempt_at IS NULL)"
      "   ORDER BY d.died_at LIMIT $2) RETURNING channel_name",
      {INTERVALOID, INT8OID});
  static Statement failures(
      "DELETE FROM $S.mq_failures WHERE failure_no IN (SELECT f.failure_no FROM $S.mq_failures f"
      "   WHERE f.failed_at < pg_catalog.clock_timestamp() - $1 ORDER BY f.failed_at LIMIT $2)",
      {INTERVALOID, INT8OID});
  const auto keep = [](int minutes) { return interval_datum(Micros{minutes} * 60 * kSecond); };
  bool more = false;
  if (mq_dead_retention >= 0) {
    const Rows gone = dead.run({keep(mq_dead_retention), Int64GetDatum(kStep)});
    ledger::RowChanges changes(Extension::dead());
    for (std::size_t i = 0; i < gone.size(); ++i) changes.add(text_view(gone.get(i, 1)), -1);
    more = gone.size() == kStep;
  }
  if (mq_failure_retention >= 0)
    more = failures.run({keep(mq_failure_retention), Int64GetDatum(kStep)}).size() == kStep || more;
  return more;
}

}  // namespace

namespace {

// Looks at up to `most` channels with keys above `behind`, which it moves on, or back to the start at the end.
// Returns how many it looked at.
std::size_t repair_page(std::int64_t& behind, std::size_t most, bool& repaired) {
  static Statement find(
      "WITH RECURSIVE c (key, step) AS ("
      "  SELECT (SELECT m.channel_key FROM $S.mq_msgs m WHERE m.channel_key > $1 AND m.after_message_id IS NOT NULL"
      "           ORDER BY m.channel_key LIMIT 1), 1"
      "  UNION ALL"
      "  SELECT (SELECT m.channel_key FROM $S.mq_msgs m WHERE m.channel_key > c.key AND m.after_message_id IS NOT NULL"
      "           ORDER BY m.channel_key LIMIT 1), c.step + 1 FROM c WHERE c.key IS NOT NULL AND c.step < $2)"
      " SELECT c.key, f.channel_name, f.channel_args,"
      "        f.after_message_id <> '00000000-0000-0000-0000-000000000000'"
      "   FROM c CROSS JOIN LATERAL ("
      "        SELECT m.channel_name, m.channel_args, m.after_message_id FROM $S.mq_msgs m"
      "         WHERE m.channel_key = c.key AND m.after_message_id IS NOT NULL ORDER BY m.place LIMIT 1) f",
      {INT8OID, INT4OID});
  const Rows rows = find.run({Int64GetDatum(behind), Int32GetDatum(static_cast<int>(most))});
  const std::size_t steps = rows.size();
  behind = steps < most ? PG_INT64_MIN : DatumGetInt64(rows.get(steps - 1, 1));
  std::vector<LooseChannel> headless;
  for (std::size_t i = 0; i < steps; ++i)
    if (DatumGetBool(rows.get(i, 4)))
      headless.push_back({DatumGetInt64(rows.get(i, 1)), std::string(text_view(rows.get(i, 2))),
                          std::string(text_view(rows.get(i, 3)))});
  repaired = link_channels(headless).size() < headless.size() || repaired;
  return steps;
}

}  // namespace

bool repair_heads() {
  static std::int64_t behind = PG_INT64_MIN;  // the channel where the step before ended
  bool repaired = false;
  const bool from_the_middle = behind != PG_INT64_MIN;
  const std::size_t seen = repair_page(behind, kStep, repaired);
  if (from_the_middle && seen < kStep) repair_page(behind, kStep - seen, repaired);
  return repaired;
}

bool bury_expired(SqlClaimSource& source, Micros now) {
  const OwnerScope scope;
  Batch batch;
  source.expired(now, static_cast<int>(kStep), batch);
  return bury(batch, now);
}

bool sweep(SqlClaimSource& source, Micros now) {
  const OwnerScope scope;
  bool ready = bury_expired(source, now);
  ready = bury_spent(source, now) || ready;
  ready = unblock() || ready;
  ready = repair_heads() || ready;
  remove_orphan_payloads();
  ready = forget_old() || ready;
  tally::fold();
  return ready;
}

}  // namespace mq
