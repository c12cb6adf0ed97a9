#include "enabled.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <climits>

#include "arguments.hpp"
#include "claim_source.hpp"
#include "entries.h"
#include "extension.hpp"
#include "fence.hpp"
#include "ledger.hpp"
#include "marks.hpp"
#include "result_set.hpp"
#include "shared.hpp"
#include "spi.hpp"

extern "C" {
#include "access/xlog.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"
}

namespace mq::enabled {

namespace {

// As it was read last. The generation is the registry's, which grows with the mark too.
struct Standing {
  std::uint64_t generation = 0;
  bool updated = true;      // the catalog is that of the library
  bool marked = false;      // there is a mark,
  bool mine = false;        // of this database and this server, or the server that this one was upgraded from,
  bool in_order = false;    // and it says so
  bool subscribed = false;  // a subscription writes into our tables, and has not been allowed to

  bool enabled() const { return updated && mine && !subscribed; }
};
Standing standing;

Datum system_identifier() {
  return Int64GetDatum(static_cast<std::int64_t>(GetSystemIdentifier()));
}

#define SUBSCRIBED                                                                              \
  "EXISTS (SELECT FROM pg_catalog.pg_subscription_rel r JOIN pg_catalog.pg_depend d"            \
  "          ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = r.srrelid" \
  "         AND d.deptype = 'e' AND d.refobjid = e.oid)"

void read() {
  static Statement select(
      "SELECT m.database = $1, m.system_identifier = $2, m.extension_xmin = e.xmin, m.subscribed, " SUBSCRIBED
      "  FROM pg_catalog.pg_extension e LEFT JOIN $S.mq_enabled m ON true WHERE e.extname = 'mq'",
      {OIDOID, INT8OID});
  Standing found;
  found.updated = Extension::get().is_updated();
  found.generation = Extension::registry_generation();
  if (found.updated) {
    const OwnerScope scope;
    const SpiConnection spi;
    const Rows rows = select.run({ObjectIdGetDatum(MyDatabaseId), system_identifier()});
    if (rows.size() != 1) throw Error("XX000", "extension \"mq\" is not installed");
    found.marked = !rows.is_null(0, 1);
    const bool same_database = found.marked && DatumGetBool(rows.get(0, 1));
    const bool same_system = found.marked && DatumGetBool(rows.get(0, 2));
    const bool same_catalog = found.marked && DatumGetBool(rows.get(0, 3));
    found.mine = same_database && (same_system || !same_catalog);
    found.in_order = same_database && same_system && same_catalog;
    found.subscribed = DatumGetBool(rows.get(0, 5)) && !(found.marked && DatumGetBool(rows.get(0, 4)));
  }
  standing = found;
}

const Standing& current() {
  if (!Extension::installed()) throw Error("3F000", "extension \"mq\" is not installed in this database");
  if (standing.generation != Extension::registry_generation()) read();
  return standing;
}

// At the commit every process reads it again.
void changed() {
  const Oid relation = Extension::enabled();
  fence::call([&] { CacheInvalidateRelcacheByRelid(relation); });
  standing.generation = 0;
}

void forget() {
  static Statement remove("DELETE FROM $S.mq_enabled", {});
  remove.run({});
  changed();
}

void mark() {
  static Statement insert(
      "INSERT INTO $S.mq_enabled AS m (database, system_identifier, extension_xmin, subscribed, enabled_by)"
      " SELECT $1, $2, e.xmin, " SUBSCRIBED
      ", session_user FROM pg_catalog.pg_extension e WHERE e.extname = 'mq'"
      " ON CONFLICT (only_row) DO UPDATE SET id = CASE WHEN m.database = $1 AND m.system_identifier = $2 THEN m.id "
      "ELSE EXCLUDED.id END, database = EXCLUDED.database,"
      "   system_identifier = EXCLUDED.system_identifier, extension_xmin = EXCLUDED.extension_xmin,"
      "   subscribed = EXCLUDED.subscribed, enabled_at = EXCLUDED.enabled_at, enabled_by = EXCLUDED.enabled_by",
      {OIDOID, INT8OID});
  // Roles by their names: in another server their oids are those of others.
  static Statement adopt(
      "UPDATE $S.mq_handlers h SET enabled_id = m.id, run_as_oid = r.oid FROM $S.mq_enabled m, pg_catalog.pg_roles r"
      " WHERE h.enabled_id IS DISTINCT FROM m.id AND r.rolname = h.run_as AND h.run_as_oid IS DISTINCT FROM 0",
      {});
  insert.run({ObjectIdGetDatum(MyDatabaseId), system_identifier()});
  adopt.run({});
  changed();
  Extension::registry_changed();
  ledger::announce();
}

// Of handlers that mark() left alone, since their roles are not here.
void warn_of_missing_roles() {
  static Statement select(
      "SELECT pg_catalog.string_agg(DISTINCT pg_catalog.format('%I', h.run_as), ', ')"
      "  FROM $S.mq_handlers h JOIN $S.mq_enabled m ON m.id IS DISTINCT FROM h.enabled_id"
      " WHERE h.run_as_oid IS DISTINCT FROM 0",
      {});
  const Rows rows = select.run({});
  if (rows.is_null(0, 1)) return;
  const std::string roles(text_view(rows.get(0, 1)));
  const char* names = roles.c_str();
  fence::call([&] {
    ereport(WARNING, (errmsg("handlers are left alone, since the roles that they run as do not exist: %s", names),
                      errhint("Create the roles and call mq_enable() again, or register the handlers with another "
                              "run_as.")));
  });
}

// A dump may hold rows and no sequence, or an older one; what a subscription writes draws from none.
void advance_sequences() {
  static Statement places(
      "SELECT pg_catalog.setval(s.tableoid, n.most) FROM (SELECT max(m.place) AS most FROM $S.mq_msgs m) n,"
      " $S.mq_place_seq s WHERE n.most >= s.last_value",
      {});
  static Statement dead(
      "SELECT pg_catalog.setval(s.tableoid, n.most) FROM (SELECT max(d.dead_no) AS most FROM $S.mq_dead d) n,"
      " $S.mq_dead_dead_no_seq s WHERE n.most >= s.last_value",
      {});
  static Statement failures(
      "SELECT pg_catalog.setval(s.tableoid, n.most)"
      "  FROM (SELECT max(f.failure_no) AS most FROM $S.mq_failures f) n, $S.mq_failures_failure_no_seq s"
      " WHERE n.most >= s.last_value",
      {});
  for (Statement* advance : {&places, &dead, &failures}) advance->run({});
}

// Whether that process waits for a lock that this one holds.
bool waits_for_us(int process) {
  return fence::call([&] {
    const ArrayType* blockers = DatumGetArrayTypeP(DirectFunctionCall1(pg_blocking_pids, Int32GetDatum(process)));
    const auto* pids = reinterpret_cast<const int32*>(ARR_DATA_PTR(blockers));
    for (int i = 0; i < ArrayGetNItems(ARR_NDIM(blockers), ARR_DIMS(blockers)); ++i)
      if (pids[i] == MyProcPid) return true;
    return false;
  });
}

// For a wait in which others are to find a deadlock first.
class Patience {
 public:
  Patience() : before_(DeadlockTimeout) { DeadlockTimeout = std::min(before_, INT_MAX - kLonger) + kLonger; }
  ~Patience() { DeadlockTimeout = before_; }
  Patience(const Patience&) = delete;
  Patience& operator=(const Patience&) = delete;

 private:
  static constexpr int kLonger = 10'000;  // milliseconds
  const int before_;
};

// A restore in one transaction may have locked tables (TRUNCATE, DISABLE TRIGGER) that a worker waits for which has
// begun to work. Of the two the worker gives way, since nothing is charged for that: one that waits already is asked
// to, one that begins to wait from now on finds the deadlock itself.
void lock_out_workers() {
  for (const int process : shared::processes_in(MyDatabaseId))
    if (waits_for_us(process)) shared::ask_to_give_way(process);
  const Oid extension = Extension::get().oid();
  const Patience patience;
  fence::call([&] { LockDatabaseObject(ExtensionRelationId, extension, 0, AccessExclusiveLock); });
}

// pg_dump and pg_restore turn row_security off in what they write, whatever the format is.
bool is_restoring() {
  return !row_security || (application_name != nullptr && strcmp(application_name, "pg_restore") == 0);
}

}  // namespace

bool here() {
  return current().enabled();
}

bool here_at_last() {
  standing.generation = 0;
  return here();
}

bool confirm() {
  static Statement renew(
      "UPDATE $S.mq_enabled m SET system_identifier = $1, extension_xmin = e.xmin FROM pg_catalog.pg_extension e"
      " WHERE e.extname = 'mq' AND m.ctid IN (SELECT l.ctid FROM $S.mq_enabled l FOR NO KEY UPDATE SKIP LOCKED)",
      {INT8OID});
  static Statement remove(
      "DELETE FROM $S.mq_enabled m WHERE m.ctid IN (SELECT l.ctid FROM $S.mq_enabled l FOR UPDATE SKIP LOCKED)", {});
  const Standing found = current();
  if (!found.updated || !found.marked || (found.in_order && !found.subscribed)) return found.enabled();
  const OwnerScope scope;
  const SpiConnection spi;
  if (found.enabled())
    renew.run({system_identifier()});
  else
    remove.run({});  // for good: what comes later must not make it look as upgraded
  changed();
  return found.enabled();
}

void follow_roles() {
  static Statement follow(
      "UPDATE $S.mq_handlers h SET run_as = COALESCE(c.rolname::pg_catalog.text, h.run_as),"
      "                            run_as_oid = COALESCE(c.oid, 0)"
      "  FROM (SELECT l.ctid AS row, r.oid, r.rolname FROM $S.mq_handlers l JOIN $S.mq_enabled m ON m.id = l.enabled_id"
      "          LEFT JOIN pg_catalog.pg_roles r ON r.oid = l.run_as_oid"
      "         WHERE l.run_as_oid <> 0 AND r.rolname IS DISTINCT FROM l.run_as FOR NO KEY UPDATE OF l SKIP LOCKED) c"
      " WHERE h.ctid = c.row",
      {});
  const OwnerScope scope;
  follow.run({});
}

std::string why_not() {
  const Standing& found = current();
  if (found.enabled()) return {};
  if (!found.updated) {
    const Error error = Extension::get().needs_update();
    return error.message + ": no message is handled until ALTER EXTENSION mq UPDATE";
  }
  return std::string(
             found.subscribed
                 ? "a subscription writes into the tables of mq, and what it brings may be handled where it comes from"
                 : "this database was restored or copied from another, where its messages may be handled, or more of "
                   "it is still to come") +
         ": no message is handled, swept or moved to mq_dead here until SELECT mq_enable()";
}

Error refusal() {
  const Extension& extension = Extension::get();
  if (!current().updated) return extension.needs_update();
  return {"55000", "messages are not handled in this database", why_not() + ".",
          fmt::format("SELECT {}.mq_enable() once everything is here and is to be handled here.",
                      extension.quoted_schema())};
}

std::optional<Uuid> lock_id() {
  static Statement select("SELECT m.id FROM $S.mq_enabled m FOR SHARE", {});
  const Rows rows = select.run({});
  if (rows.empty()) return std::nullopt;
  return uuid_of(rows.get(0, 1));
}

void enable() {
  // An update may go through several versions.
  if (!creating_extension && !Extension::get().is_updated()) throw Extension::get().needs_update();
  const OwnerScope scope;
  const SpiConnection spi;
  mark();
  warn_of_missing_roles();
  advance_sequences();
  // Rows that came past our functions are older than what the marks know.
  for (const std::string& name : SqlClaimSource().channel_names()) {
    ledger::due(name, marks::kNone);
    ledger::wake(name);
  }
}

void enable_if_empty() {
  static Statement any(
      "SELECT EXISTS (SELECT FROM $S.mq_msgs) OR EXISTS (SELECT FROM $S.mq_payloads) OR EXISTS (SELECT FROM $S.mq_dead)"
      "    OR EXISTS (SELECT FROM $S.mq_handlers)",
      {});
  if (here() || standing.subscribed || DatumGetBool(any.run({}).get(0, 1))) return;
  mark();
}

// Who has begun to work here is waited for, and nobody begins before the transaction is over: rows are seen together
// with the end of their mark.
void restored() {
  if (!current().marked) return;
  lock_out_workers();
  const OwnerScope scope;
  const SpiConnection spi;
  forget();
  ledger::announce();
}

}  // namespace mq::enabled

extern "C" Datum mq_enable_entry(FunctionCallInfo) {
  return mq::fence::entry([] {
    mq::refuse_read_only("mq_enable()");
    // Of a script, CREATE EXTENSION or an update: the row in pg_extension has only just been written.
    if (creating_extension) mq::Extension::look_again();
    if (!creating_extension || !mq::enabled::is_restoring()) mq::enabled::enable();
    return Datum{0};
  });
}

extern "C" Datum mq_enabled_state_entry(FunctionCallInfo fcinfo) {
  return mq::fence::entry([&] {
    mq::ResultSet result(fcinfo);
    const std::string reason = mq::enabled::why_not();
    result.add({BoolGetDatum(reason.empty()), reason.empty() ? mq::Param() : mq::Param(mq::text_datum(reason))});
    return Datum{0};
  });
}

// Before a row of mq_enabled is written in a session of replication: the mark of another server is not taken. What we
// write ourselves is, even if somebody restores a dump in such a session.
extern "C" Datum mq_enabled_stays_entry(FunctionCallInfo fcinfo) {
  if (!CALLED_AS_TRIGGER(fcinfo) || !mq::OwnerScope::is_open()) return PointerGetDatum(nullptr);
  const auto* data = reinterpret_cast<TriggerData*>(fcinfo->context);
  return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(data->tg_event) ? data->tg_newtuple : data->tg_trigtuple);
}

extern "C" void mq_rows_restored(Oid relation) {
  if (!OidIsValid(relation) || XactReadOnly) return;
  mq::fence::guard([&] {
    if (!mq::Extension::installed()) return;
    const bool ours = mq::fence::call([&] { return get_rel_namespace(relation); }) == mq::Extension::get().schema();
    // Who may not write there is refused by the server in a moment, and holds up nobody.
    const bool allowed =
        mq::fence::call([&] { return pg_class_aclcheck(relation, GetUserId(), ACL_INSERT) == ACLCHECK_OK; });
    if (ours && allowed) mq::enabled::restored();
  });
}
