#include "queue/enabled.hpp"

#include <algorithm>
#include <climits>

#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/result_set.hpp"
#include "pg/statement.hpp"
#include "queue/commit_actions.hpp"
#include "queue/due.hpp"
#include "queue/low_water.hpp"
#include "queue/skip_scan.hpp"
#include "shmem/rare_writes.hpp"
#include "shmem/requests.hpp"

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

// The state that this process read last.
struct Standing {
  // The registry's generation when it was read, which grows when the mark changes; 0: read again.
  std::uint64_t generation = 0;
  bool updated = true;    // the catalog is that of the library
  bool marked = false;    // there is a mark
  bool mine = false;      // it is of this database, and of this server or the one it was upgraded from
  bool in_order = false;  // its OID, system identifier and xmin are those of this database
  // A subscription writes into mq's tables, and mq_enable() was not called under it.
  bool subscribed = false;

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

// Makes every process read the mark again once this transaction commits.
void changed() {
  const Oid relation = Extension::enabled();
  guard::call([&] { CacheInvalidateRelcacheByRelid(relation); });
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
  // Finds roles by name: in another server their OIDs may belong to other roles.
  static Statement adopt(
      "UPDATE $S.mq_handlers h SET enabled_id = m.id, run_as_oid = r.oid FROM $S.mq_enabled m, pg_catalog.pg_roles r"
      " WHERE h.enabled_id IS DISTINCT FROM m.id AND r.rolname = h.run_as AND h.run_as_oid IS DISTINCT FROM 0",
      {});
  static Statement adopt_schedules(
      "UPDATE $S.mq_timetable t SET enabled_id = m.id, run_as_oid = r.oid FROM $S.mq_enabled m, pg_catalog.pg_roles r"
      " WHERE t.enabled_id IS DISTINCT FROM m.id AND r.rolname = t.run_as AND t.run_as_oid IS DISTINCT FROM 0",
      {});
  insert.run({ObjectIdGetDatum(MyDatabaseId), system_identifier()});
  adopt.run({});
  if (Extension::get().is_updated()) adopt_schedules.run({});  // CREATE EXTENSION may be of an older version
  changed();
  Extension::registry_changed();
  commit_actions::announce();
}

// Warns of the roles of handlers and schedules that mark() did not adopt, since the roles do not exist here.
void warn_of_missing_roles() {
  static Statement select(
      "SELECT pg_catalog.string_agg(DISTINCT pg_catalog.format('%I', h.run_as), ', ')"
      "  FROM (SELECT a.run_as, a.run_as_oid, a.enabled_id FROM $S.mq_handlers a"
      "        UNION ALL SELECT b.run_as, b.run_as_oid, b.enabled_id FROM $S.mq_timetable b) h"
      "  JOIN $S.mq_enabled m ON m.id IS DISTINCT FROM h.enabled_id"
      " WHERE h.run_as_oid IS DISTINCT FROM 0",
      {});
  const Rows rows = select.run({});
  if (rows.is_null(0, 1)) return;
  const std::string roles(text_view(rows.get(0, 1)));
  const char* names = roles.c_str();
  guard::call([&] {
    ereport(WARNING,
            (errmsg("handlers and schedules are left alone, since the roles that they run as do not exist: %s", names),
             errhint("Create the roles and call mq_enable() again, or register the handlers with another run_as and "
                     "make the schedules as another role.")));
  });
}

// Sets the sequences behind the rows. A dump may hold rows but no sequence value, or an older one;
// a subscription writes rows without the sequence.
void advance_sequences() {
  static Statement messages(
      "SELECT pg_catalog.setval(s.tableoid, n.most) FROM (SELECT max(m.seq) AS most FROM $S.mq_msgs m) n,"
      " $S.mq_msgs_seq s WHERE n.most >= s.last_value",
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
  for (Statement* advance : {&messages, &dead, &failures}) advance->run({});
}

// Whether the process waits for a lock that this one holds.
bool waits_for_us(int process) {
  return guard::call([&] {
    const ArrayType* blockers = DatumGetArrayTypeP(DirectFunctionCall1(pg_blocking_pids, Int32GetDatum(process)));
    const auto* pids = reinterpret_cast<const int32*>(ARR_DATA_PTR(blockers));
    for (int i = 0; i < ArrayGetNItems(ARR_NDIM(blockers), ARR_DIMS(blockers)); ++i)
      if (pids[i] == MyProcPid) return true;
    return false;
  });
}

// Lives while this session waits for a lock, so that the other session finds a deadlock first.
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

// Locks the extension, to the end of the transaction. The process then knows what those have
// committed that it has waited for.
//
//   AccessShareLock         a worker or mq_run, in each transaction that may touch messages
//   RowExclusiveLock        a restore where there is no mark
//   ShareRowExclusiveLock   a session that looks for rows, and makes the mark if there are none
//   AccessExclusiveLock     a restore that removes the mark
void lock_extension(LOCKMODE mode) {
  const Oid extension = Extension::get().oid();
  guard::call([&] { LockDatabaseObject(ExtensionRelationId, extension, 0, mode); });
}

void unlock_extension(LOCKMODE mode) {
  const Oid extension = Extension::get().oid();
  guard::call([&] { UnlockDatabaseObject(ExtensionRelationId, extension, 0, mode); });
}

// Waits for the workers' batches. The lock on the extension keeps workers from beginning another
// one before this transaction ends. The restore may have locked a table (TRUNCATE, DISABLE TRIGGER)
// that a worker in a batch needs. Then the worker gives way, as no attempt is charged for that:
//
//   case 1   worker    holds the extension, waits for the table
//            restore   sees that, and cancels what the worker does
//   case 2   restore   waits for the extension
//            worker    waits for the table; after deadlock_timeout it finds the deadlock
//            restore   would have looked for it 10 s later (Patience)
void lock_out_workers() {
  for (const int process : shared::processes_in(MyDatabaseId))
    if (waits_for_us(process)) shared::ask_to_give_way(process);
  const Patience patience;
  lock_extension(AccessExclusiveLock);
}

// Dumps of every format turn row_security off; pg_restore gives its name as well.
bool is_restoring() {
  return !row_security || (application_name != nullptr && strcmp(application_name, "pg_restore") == 0);
}

}  // namespace

bool here() {
  return current().enabled();
}

bool hold() {
  return Extension::hold() && here();
}

bool still_here() {
  standing.generation = 0;
  return here();
}

bool confirm() {
  static Statement renew(
      "UPDATE $S.mq_enabled m SET system_identifier = $1, extension_xmin = e.xmin FROM pg_catalog.pg_extension e"
      " WHERE e.extname = 'mq' AND m.ctid IN (SELECT l.ctid FROM $S.mq_enabled l FOR NO KEY UPDATE SKIP LOCKED)",
      {INT8OID});
  // Looks at the row again, since mq_enable() may have committed after current() read it.
  static Statement remove(
      "DELETE FROM $S.mq_enabled m USING pg_catalog.pg_extension e"
      " WHERE e.extname = 'mq' AND m.ctid IN (SELECT l.ctid FROM $S.mq_enabled l FOR UPDATE SKIP LOCKED)"
      "   AND (m.database <> $1 OR (m.system_identifier <> $2 AND m.extension_xmin = e.xmin)"
      "        OR (NOT m.subscribed AND " SUBSCRIBED "))",
      {OIDOID, INT8OID});
  const Standing found = current();
  if (!found.updated || !found.marked || (found.in_order && !found.subscribed)) return found.enabled();
  const OwnerScope scope;
  const SpiConnection spi;
  if (found.enabled())
    renew.run({system_identifier()});
  else
    remove.run({ObjectIdGetDatum(MyDatabaseId),
                system_identifier()});  // so that a later pg_upgrade of a copy does not make the mark look right
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
          mq::format("SELECT {}.mq_enable() once everything is here and is to be handled here.",
                     extension.quoted_schema())};
}

void say_waits() {
  const Error error = refusal();
  guard::call([&] {
    ereport(NOTICE, (errmsg("%s", error.message.c_str()), errdetail("%s", error.detail.c_str()),
                     errhint("%s", error.hint.c_str())));
  });
}

std::optional<Uuid> lock_id() {
  static Statement select("SELECT m.id FROM $S.mq_enabled m FOR SHARE", {});
  const Rows rows = select.run({});
  if (rows.empty()) return std::nullopt;
  return uuid_of(rows.get(0, 1));
}

void enable() {
  // An update may run the scripts of several versions, so its catalog may still be older.
  if (!creating_extension && !Extension::get().is_updated()) throw Extension::get().needs_update();
  const OwnerScope scope;
  const SpiConnection spi;
  mark();
  if (!Extension::get().is_updated()) return;  // CREATE EXTENSION of an older version
  warn_of_missing_roles();
  advance_sequences();
  // Rows that a restore or a subscription wrote did not raise the count of notes, nor lower the marks.
  shared::rare_write(shared::Rare::kCancelNotes);
  for (const std::string& name : channel_names()) {
    commit_actions::due(name, 0, low_water::kNone);
    for (const Level& level : levels_of(name)) commit_actions::due(name, level.priority, low_water::kNone);
    commit_actions::wake(name);
  }
}

void enable_if_empty() {
  static Statement any(
      "SELECT EXISTS (SELECT FROM $S.mq_msgs) OR EXISTS (SELECT FROM $S.mq_dead)"
      "    OR EXISTS (SELECT FROM $S.mq_handlers) OR EXISTS (SELECT FROM $S.mq_timetable)",
      {});
  const auto is_enabled_or_filled = [] { return here() || standing.subscribed || DatumGetBool(any.run({}).get(0, 1)); };
  if (is_enabled_or_filled()) return;
  lock_extension(ShareRowExclusiveLock);  // waits for restores, whose rows cannot be seen yet
  if (!is_enabled_or_filled()) mark();
}

// The rows and the end of the mark commit together, while no batch of a worker runs.
void restored() {
  if (!current().marked) {
    lock_extension(RowExclusiveLock);
    if (!current().marked) return;
    unlock_extension(RowExclusiveLock);  // lest two restores wait for each other in lock_out_workers()
  }
  lock_out_workers();
  const OwnerScope scope;
  const SpiConnection spi;
  forget();
  commit_actions::announce();
}

}  // namespace mq::enabled

extern "C" Datum mq_enable_entry(FunctionCallInfo) {
  return mq::guard::entry([] {
    mq::refuse_read_only("mq_enable()");
    // CREATE EXTENSION or an update has only just written the row in pg_extension.
    if (creating_extension) mq::Extension::look_again();
    if (!creating_extension || !mq::enabled::is_restoring()) mq::enabled::enable();
    return Datum{0};
  });
}

extern "C" Datum mq_enabled_state_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::ResultSet result(fcinfo);
    const std::string reason = mq::enabled::why_not();
    result.add({BoolGetDatum(reason.empty()), reason.empty() ? mq::Param() : mq::Param(mq::text_datum(reason))});
    return Datum{0};
  });
}

// The trigger on mq_enabled, for sessions with session_replication_role = replica. It drops changes
// from another server, and keeps mq's own, which a restore in such a session may cause.
extern "C" Datum mq_enabled_stays_entry(FunctionCallInfo fcinfo) {
  if (!CALLED_AS_TRIGGER(fcinfo) || !mq::OwnerScope::is_open()) return PointerGetDatum(nullptr);
  const auto* data = reinterpret_cast<TriggerData*>(fcinfo->context);
  return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(data->tg_event) ? data->tg_newtuple : data->tg_trigtuple);
}

extern "C" void mq_rows_restored(Oid relation) {
  if (!OidIsValid(relation) || XactReadOnly) return;
  mq::guard::callback([&] {
    if (!mq::Extension::installed()) return;
    const bool ours = mq::guard::call([&] { return get_rel_namespace(relation); }) == mq::Extension::get().schema();
    // The server is about to refuse a user without this right, who must not hold up the workers.
    const bool allowed =
        mq::guard::call([&] { return pg_class_aclcheck(relation, GetUserId(), ACL_INSERT) == ACLCHECK_OK; });
    if (ours && allowed) mq::enabled::restored();
  });
}
