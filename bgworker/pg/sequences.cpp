#include "pg/sequences.hpp"

#include <algorithm>
#include <optional>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/locks.hpp"
#include "pg/session.hpp"

extern "C" {
#include "commands/sequence.h"
}

namespace mq::sequences {

namespace {

// While one session moves a sequence, others take numbers from where it was. It is moved so far
// beyond what is in use that none of them can have got there meanwhile.
constexpr std::int64_t kMargin = 1'000'000;

constexpr const char* kFailureNumbers = "mq_failures_failure_no_seq";

std::int64_t next_of(const char* name) {
  const Oid sequence = Extension::get().relation(name);
  return guard::call([&] { return nextval_internal(sequence, false); });
}

void set_sequence(Oid sequence, std::int64_t to) {
  static Statement set("SELECT pg_catalog.setval($1::pg_catalog.regclass, $2)", {OIDOID, INT8OID});
  set.run({ObjectIdGetDatum(sequence), Int64GetDatum(to)});
}

struct NumberedTable {
  Statement greatest;
  const char* sequence;
  std::string_view key;
};

NumberedTable& numbered(Numbered table) {
  static NumberedTable tables[] = {
      {{"SELECT max(d.dead_no) FROM $S.mq_dead d", {}}, "mq_dead_dead_no_seq", "mq_dead_pkey"},
      {{"SELECT max(f.failure_no) FROM $S.mq_failures f", {}}, kFailureNumbers, "mq_failures_pkey"},
      {{"SELECT max(d.done_no) FROM $S.mq_done d", {}}, "mq_done_done_no_seq", "mq_done_pkey"}};
  return tables[static_cast<int>(table)];
}

void mend_numbers(NumberedTable& table) {
  const locks::SequenceLock lock;
  const Rows rows = table.greatest.run({});
  if (rows.is_null(0, 1)) return;
  set_sequence(Extension::get().relation(table.sequence), DatumGetInt64(rows.get(0, 1)) + kMargin);
}

}  // namespace

std::int64_t next_seq() {
  return next_of("mq_msgs_seq");
}

std::int64_t next_failure() {
  return next_of(kFailureNumbers);
}

void mend_numbers(std::int64_t seen) {
  static Statement last("SELECT s.last_value FROM $S.mq_msgs_seq s", {});
  static Statement greatest("SELECT GREATEST(max(m.seq), max(m.lease), -min(m.lease)) FROM $S.mq_msgs m", {});
  const locks::SequenceLock lock;
  // Another session may have moved it while this one waited.
  if (DatumGetInt64(last.run({}).get(0, 1)) >= seen + kMargin) return;
  const Rows rows = greatest.run({});
  const std::int64_t used = rows.is_null(0, 1) ? seen : std::max(seen, DatumGetInt64(rows.get(0, 1)));
  set_sequence(Extension::get().relation("mq_msgs_seq"), used + 2 * kMargin);
}

Rows insert(Numbered table, const std::function<Rows()>& insert) {
  NumberedTable& mended = numbered(table);
  SavepointOnly session;
  for (int tries = 0;; ++tries) {
    session.set_savepoint();
    try {
      const Rows rows = insert();
      (void)session.release_savepoint();
      return rows;
    } catch (const Error& error) {
      session.rollback_to_savepoint();
      if (tries > 0 || error.sqlstate != "23505" || error.constraint != mended.key) throw;
    }
    mend_numbers(mended);
  }
}

}  // namespace mq::sequences
