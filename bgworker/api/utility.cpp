// Utility statements: what mq does before and after the utility statements of any session.
//
// The ProcessUtility hook in mq.c calls the three functions at the end. Only this process sees the
// MqStatement. Which databases are closed is in shared memory (shmem/shared.hpp takes its lock).
//
// 1. The statement's tree is read only before the statement runs. By its end it may be gone (a
//    ROLLBACK in a procedure, a cached plan). What follows from it waits until it has succeeded.
// 2. A statement that wants a database for itself (DROP, RENAME, SET TABLESPACE, CREATE ...
//    TEMPLATE) closes it to workers before it runs. They leave. The hook opens the database again
//    afterwards.
// 3. Leaving ends leased calls, so workers stay if the server would refuse the statement. The hook
//    first makes the server's checks, and waits for sessions of others, on which the statement
//    would fail.
// 4. Other statements that change a database leave workers where they are (ALLOW_CONNECTIONS,
//    CONNECTION LIMIT, OWNER, IS_TEMPLATE, SET, REINDEX, VACUUM FULL, DROP TABLESPACE).

#include <algorithm>
#include <cstring>
#include <vector>

#include "api/create_database.hpp"
#include "entries.h"
#include "leased/pq_session.hpp"
#include "pg/clock.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/handler_identity.hpp"
#include "pg/statement.hpp"
#include "pg/versions.hpp"
#include "pg/wait_event.hpp"
#include "queue/commit_actions.hpp"
#include "shmem/listeners.hpp"
#include "shmem/requests.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "access/twophase.h"
#include "access/xlog.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_tablespace.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/tablespace.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/syscache.h"
#include "utils/wait_event.h"
}

namespace mq {

namespace {

constexpr Micros kOthersMayLeave = 5 * kSecond;  // the server waits as long for them
constexpr Micros kWorkersLeave = 5 * kSecond;
constexpr long kTickMs = 20;

// --- the database that a statement wants --------------------------------------------------------

struct Wanted {
  Oid database = InvalidOid;  // InvalidOid: none, or the server would refuse the statement
  bool drops = false;
  bool force = false;  // WITH (FORCE): the server terminates the sessions in it
};

struct DatabaseRow {
  bool is_template;
  Oid tablespace;
};

DatabaseRow row_of(Oid database) {
  DatabaseRow row{};
  HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
  if (!HeapTupleIsValid(tuple)) return row;
  const auto* form = (Form_pg_database)GETSTRUCT(tuple);
  row = {form->datistemplate, form->dattablespace};
  ReleaseSysCache(tuple);
  return row;
}

bool owns(Oid database) {
  return server::owns_database(database, GetUserId());
}

bool may_create_databases() {
  if (superuser()) return true;
  HeapTuple tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
  if (!HeapTupleIsValid(tuple)) return false;
  const bool may = ((Form_pg_authid)GETSTRUCT(tuple))->rolcreatedb;
  ReleaseSysCache(tuple);
  return may;
}

bool may_create_in(Oid tablespace) {
  return server::may_create_in_tablespace(tablespace, GetUserId());
}

const DefElem* option(const List* options, const char* name) {
  ListCell* cell = nullptr;
  foreach (cell, options) {
    const auto* element = static_cast<const DefElem*>(lfirst(cell));
    if (strcmp(element->defname, name) == 0) return element;
  }
  return nullptr;
}

const char* option_text(const List* options, const char* name) {
  const DefElem* element = option(options, name);
  return element != nullptr && element->arg != nullptr ? defGetString(const_cast<DefElem*>(element)) : nullptr;
}

Wanted by_drop(const DropdbStmt* statement) {
  const Oid database = get_database_oid(statement->dbname, true);
  if (!OidIsValid(database) || database == MyDatabaseId || !owns(database) || row_of(database).is_template) return {};
  int slots = 0;
  int active_slots = 0;
  (void)ReplicationSlotsCountDBSlots(database, &slots, &active_slots);
  if (active_slots > 0 || CountDBSubscriptions(database) > 0) return {};
  return {database, true, option(statement->options, "force") != nullptr};
}

Wanted by_rename(const RenameStmt* statement) {
  const Oid database = get_database_oid(statement->subname, true);
  if (!OidIsValid(database) || database == MyDatabaseId || !owns(database) || !may_create_databases() ||
      OidIsValid(get_database_oid(statement->newname, true)))
    return {};
  return {database};
}

Wanted by_set_tablespace(const AlterDatabaseStmt* statement) {
  const char* name = option_text(statement->options, "tablespace");
  if (name == nullptr || list_length(statement->options) != 1) return {};
  const Oid database = get_database_oid(statement->dbname, true);
  const Oid tablespace = get_tablespace_oid(name, true);
  if (!OidIsValid(database) || !OidIsValid(tablespace) || database == MyDatabaseId || !owns(database) ||
      !may_create_in(tablespace) || tablespace == GLOBALTABLESPACE_OID || tablespace == row_of(database).tablespace ||
      !tablespace_has_room(database, tablespace))
    return {};
  return {database};
}

Wanted by_create(const CreatedbStmt* statement) {
  const char* source = option_text(statement->options, "template");
  const char* owner = option_text(statement->options, "owner");
  const char* tablespace = option_text(statement->options, "tablespace");
  const Oid database = get_database_oid(source != nullptr ? source : "template1", true);
  if (!OidIsValid(database) || !may_create_databases() || (!row_of(database).is_template && !owns(database)) ||
      OidIsValid(get_database_oid(statement->dbname, true)))
    return {};
  if (owner != nullptr) {
    const Oid role = get_role_oid(owner, true);
    if (!OidIsValid(role)) return {};
    if (!server::can_set_role(GetUserId(), role)) return {};
  }
  if (tablespace != nullptr) {
    const Oid id = get_tablespace_oid(tablespace, true);
    if (!OidIsValid(id) || id == GLOBALTABLESPACE_OID || !may_create_in(id)) return {};
    if (id != row_of(database).tablespace && !tablespace_has_room(database, id)) return {};
  }
  return takes_options(statement, database) ? Wanted{database} : Wanted{};
}

Wanted wanted_by(const Node* node, bool top_level) {
  const bool is_rename = IsA(node, RenameStmt);
  if (XactReadOnly || RecoveryInProgress()) return {};
  // Only RENAME may run inside a transaction block.
  if (!is_rename && IsInTransactionBlock(top_level)) return {};
  switch (nodeTag(node)) {
    case T_DropdbStmt:
      return by_drop(reinterpret_cast<const DropdbStmt*>(node));
    case T_CreatedbStmt:
      return by_create(reinterpret_cast<const CreatedbStmt*>(node));
    case T_AlterDatabaseStmt:
      return by_set_tablespace(reinterpret_cast<const AlterDatabaseStmt*>(node));
    default:
      return by_rename(reinterpret_cast<const RenameStmt*>(node));
  }
}

// --- the processes in the database --------------------------------------------------------------

struct Present {
  int ours;        // workers, and the sessions of leased handlers
  int others;      // sessions on which the statement would fail
  int autovacuum;  // autovacuum workers
  bool kept;       // the current user may not terminate one of `others`
};

bool may_terminate(Oid role) {
  if (superuser()) return true;
  return !superuser_arg(role) &&
         (has_privs_of_role(GetUserId(), role) || has_privs_of_role(GetUserId(), ROLE_PG_SIGNAL_BACKEND));
}

Present who_is_in(Oid database) {
  const std::vector<int> ours = shared::processes_in(database);
  const int* pids = ours.data();
  const std::size_t count = ours.size();
  return guard::call([&] {
    Present present{};
    pgstat_clear_backend_activity_snapshot();
    for (int i = 1; i <= pgstat_fetch_stat_numbackends(); ++i) {
      const PgBackendStatus& status = server::backend_status(i);
      if (status.st_databaseid != database || status.st_procpid == MyProcPid) continue;
      // The server ends autovacuum workers itself. A leased session between two calls is not in
      // processes_in(); its application_name tells it apart.
      if (status.st_backendType == B_AUTOVAC_WORKER) {
        ++present.autovacuum;
        continue;
      }
      if (std::find(pids, pids + count, status.st_procpid) != pids + count ||
          strcmp(status.st_appname, kLeasedApplicationName) == 0) {
        ++present.ours;
        continue;
      }
      ++present.others;
      present.kept = present.kept || !may_terminate(status.st_userid);
    }
    return present;
  });
}

bool has_prepared_transactions(Oid database) {
  if (max_prepared_xacts == 0) return false;
  return guard::call([&] {
    SPI_connect();
    char* query =
        psprintf("SELECT 1 FROM pg_catalog.pg_prepared_xact() p WHERE p.dbid OPERATOR(pg_catalog.=) %u", database);
    SPI_execute(query, true, 1);
    const bool any = SPI_processed > 0;
    SPI_finish();
    return any;
  });
}

template <class Condition>
bool within(Micros limit, Condition condition) {
  ServerClock clock;
  const Micros end = clock.steady() + limit;
  while (!condition()) {
    if (clock.steady() >= end) return false;
    guard::call([] {
      (void)WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, kTickMs, wait_event(WaitFor::kLeave));
      ResetLatch(MyLatch);
      CHECK_FOR_INTERRUPTS();
    });
  }
  return true;
}

// Closes the database to workers, and waits up to kWorkersLeave until they have left. If processes
// of mq are in it, waits for sessions of others first, up to kOthersMayLeave. If those stay, or
// there are prepared transactions, it closes nothing: the statement fails.
void make_room(const Wanted& wanted, MqStatement& statement) {
  if (!shared::available()) return;
  const Oid database = wanted.database;
  if (!shared::processes_in(database).empty()) {
    const auto others_left = [&] {
      const Present present = who_is_in(database);
      return present.others == 0 || (wanted.force && !present.kept);
    };
    if (!within(kOthersMayLeave, others_left) || has_prepared_transactions(database)) return;
  }
  shared::close_database(database);
  statement.leaves = database;
  statement.drops = wanted.drops;
  // With FORCE and a superuser the server ends all processes itself. For other users FORCE fails on
  // the processes of a superuser, and on autovacuum workers, which belong to no role: wait until
  // both have left. Without FORCE the wait also ensures that no worker is about to connect and
  // finds the database gone. A process that ends has left our shared memory and the statistics a
  // moment before the server ceases to count it. So the server's own count must agree.
  if (wanted.force && guard::call([] { return superuser(); })) return;
  const auto left = [&] {
    if (!shared::processes_in(database).empty()) return false;
    const Present present = who_is_in(database);
    const int may_be_there = present.others + (wanted.force ? 0 : present.autovacuum);
    return present.ours == 0 && guard::call([&] { return CountDBBackends(database); }) <= may_be_there;
  };
  try {
    (void)within(kWorkersLeave, left);
  } catch (...) {
    shared::open_database(database);
    throw;
  }
}

void note_settings(Oid database, Oid role, MqStatement& statement) {
  statement.sets = true;
  statement.set_database = database;
  statement.set_role = role;
}

void decide(const Node* node, bool top_level, MqStatement& statement) {
  switch (nodeTag(node)) {
    case T_RenameStmt:
      if (reinterpret_cast<const RenameStmt*>(node)->renameType != OBJECT_DATABASE) return;
      [[fallthrough]];
    case T_DropdbStmt:
    case T_CreatedbStmt:
    case T_AlterDatabaseStmt: {
      statement.changes_databases = true;
      const Wanted wanted = guard::call([&] { return wanted_by(node, top_level); });
      if (OidIsValid(wanted.database)) make_room(wanted, statement);
      return;
    }
    case T_AlterDatabaseSetStmt: {
      const char* name = reinterpret_cast<const AlterDatabaseSetStmt*>(node)->dbname;
      note_settings(guard::call([&] { return get_database_oid(name, true); }), InvalidOid, statement);
      return;
    }
    case T_AlterRoleSetStmt: {
      const auto* set = reinterpret_cast<const AlterRoleSetStmt*>(node);
      const Oid database =
          guard::call([&] { return set->database != nullptr ? get_database_oid(set->database, true) : InvalidOid; });
      const Oid role =
          guard::call([&] { return set->role != nullptr ? get_rolespec_oid(set->role, true) : InvalidOid; });
      note_settings(database, role, statement);
      return;
    }
    case T_ListenStmt:
      strlcpy(statement.listens, reinterpret_cast<const ListenStmt*>(node)->conditionname, NAMEDATALEN);
      return;
    case T_UnlistenStmt:
      statement.unlistens = reinterpret_cast<const UnlistenStmt*>(node)->conditionname == nullptr;
      return;
    case T_DiscardStmt:
      statement.unlistens = reinterpret_cast<const DiscardStmt*>(node)->target == DISCARD_ALL;
      return;
    case T_TransactionStmt:
      statement.commits_prepared = reinterpret_cast<const TransactionStmt*>(node)->kind == TRANS_STMT_COMMIT_PREPARED;
      return;
    default:
      return;
  }
}

}  // namespace

}  // namespace mq

extern "C" void mq_statement_starts(Node* node, bool top_level, MqStatement* statement) {
  memset(statement, 0, sizeof *statement);
  mq::guard::callback([&] { mq::decide(node, top_level, *statement); });
}

extern "C" void mq_statement_succeeded(const MqStatement* statement) {
  mq::guard::callback([&] {
    if (statement->changes_databases) mq::commit_actions::databases_changed();
    if (statement->sets) mq::commit_actions::settings_changed(statement->set_database, statement->set_role);
    if (statement->listens[0] != 0) mq::listeners::listen(statement->listens);
    if (statement->unlistens) mq::listeners::unlisten_all();
    if (statement->commits_prepared) mq_prepared_committed();
  });
}

extern "C" void mq_statement_over(const MqStatement* statement, bool succeeded) {
  if (OidIsValid(statement->leaves) && !(succeeded && statement->drops)) mq::shared::open_database(statement->leaves);
}

extern "C" Oid mq_owner_of_payloads(Oid relation) {
  Oid owner = InvalidOid;
  mq::guard::callback([&] {
    if (!mq::Extension::installed() || relation != mq::Extension::get().relation("mq_payloads")) return;
    owner = mq::Extension::get().owner();
  });
  return owner;
}

extern "C" bool mq_has_truncate_triggers(void) {
  bool has = true;
  mq::guard::callback([&] {
    const Oid table = mq::Extension::msgs();
    has = mq::guard::call([&] {
      const Relation relation = RelationIdGetRelation(table);
      if (relation == nullptr) return true;
      const TriggerDesc* triggers = relation->trigdesc;
      const bool found =
          triggers != nullptr && (triggers->trig_truncate_before_statement || triggers->trig_truncate_after_statement);
      RelationClose(relation);
      return found;
    });
  });
  return has;
}
