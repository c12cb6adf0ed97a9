// What differs between the versions of PostgreSQL that mq is built for, 15 to 18: no other file asks which one it is. A
// function is called as the server's own are, in bodies of guard::call() where those may raise an error.
#pragma once

#include <cstdint>

#include "pg/postgres.hpp"

extern "C" {
#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_tablespace.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "postmaster/postmaster.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#include "utils/acl.h"
#include "utils/backend_status.h"
#include "utils/rel.h"
#include "utils/wait_event.h"
}

#if PG_VERSION_NUM < 150000
#error "mq needs PostgreSQL 15 or newer"
#endif

// transaction_timeout switched off, among the options of a session's start, where there is this setting.
#if PG_VERSION_NUM >= 170000
#define MQ_NO_TRANSACTION_TIMEOUT " -c transaction_timeout=0"
#else
#define MQ_NO_TRANSACTION_TIMEOUT ""
#endif

namespace mq::server {

inline constexpr bool kHasTransactionTimeout = PG_VERSION_NUM >= 170000;

// --- rights ---------------------------------------------------------------------------------

// Before 17 a background worker connects only as a role with LOGIN.
inline constexpr bool kWorkersNeedLogin = PG_VERSION_NUM < 170000;

#if PG_VERSION_NUM < 160000
// As 16 has it. Before, each kind of object has a function of its own.
inline AclResult object_aclcheck(Oid catalog, Oid object, Oid role, AclMode mode) {
  switch (catalog) {
    case TableSpaceRelationId:
      return pg_tablespace_aclcheck(object, role, mode);
    case DatabaseRelationId:
      return pg_database_aclcheck(object, role, mode);
    case NamespaceRelationId:
      return pg_namespace_aclcheck(object, role, mode);
    case ProcedureRelationId:
      return pg_proc_aclcheck(object, role, mode);
    default:
      return ACLCHECK_NO_PRIV;  // nobody asks
  }
}
#endif

inline bool may_create_in_tablespace(Oid tablespace, Oid role) {
  return object_aclcheck(TableSpaceRelationId, tablespace, role, ACL_CREATE) == ACLCHECK_OK;
}

inline bool may_connect(Oid database, Oid role) {
  return object_aclcheck(DatabaseRelationId, database, role, ACL_CONNECT) == ACLCHECK_OK;
}

inline bool may_execute(Oid function, Oid role) {
  return object_aclcheck(ProcedureRelationId, function, role, ACL_EXECUTE) == ACLCHECK_OK;
}

inline bool may_use_schema(Oid schema, Oid role) {
  return object_aclcheck(NamespaceRelationId, schema, role, ACL_USAGE) == ACLCHECK_OK;
}

inline bool owns_database(Oid database, Oid role) {
#if PG_VERSION_NUM >= 160000
  return object_ownercheck(DatabaseRelationId, database, role);
#else
  return pg_database_ownercheck(database, role);
#endif
}

// From 16 on a membership may be without the right to SET ROLE.
inline bool can_set_role(Oid role, Oid other) {
#if PG_VERSION_NUM >= 160000
  return member_can_set_role(role, other);
#else
  return is_member_of_role(role, other);
#endif
}

// --- databases ------------------------------------------------------------------------------

// The locale of a database whose provider is not libc.
#if PG_VERSION_NUM >= 170000
inline constexpr AttrNumber kDatabaseLocale = Anum_pg_database_datlocale;
inline constexpr char kBuiltinProvider = COLLPROVIDER_BUILTIN;
#else
inline constexpr AttrNumber kDatabaseLocale = Anum_pg_database_daticulocale;
inline constexpr char kBuiltinProvider = '\0';  // no database has it
#endif

// --- processes ------------------------------------------------------------------------------

inline int reserved_connections() {
#if PG_VERSION_NUM >= 160000
  return SuperuserReservedConnections + ReservedConnections;
#else
  return ReservedBackends;
#endif
}

inline bool have_free_processes(int wanted) {
#if PG_VERSION_NUM >= 160000
  int found = 0;
  return HaveNFreeProcs(wanted, &found);
#else
  return HaveNFreeProcs(wanted);
#endif
}

inline bool is_session(const PGPROC& process) {
#if PG_VERSION_NUM >= 180000
  return process.isRegularBackend;
#else
  return !process.isBackgroundWorker;
#endif
}

inline LocalTransactionId local_transaction(const PGPROC& process) {
#if PG_VERSION_NUM >= 170000
  return process.vxid.lxid;
#else
  return process.lxid;
#endif
}

// The status with this number, from 1 on.
inline const PgBackendStatus& backend_status(int number) {
#if PG_VERSION_NUM >= 160000
  return pgstat_get_local_beentry_by_index(number)->backendStatus;
#else
  return pgstat_fetch_stat_local_beentry(number)->backendStatus;
#endif
}

// --- waits ----------------------------------------------------------------------------------

inline WaitEventSet* create_wait_event_set(int size) {
#if PG_VERSION_NUM >= 170000
  return CreateWaitEventSet(nullptr, size);
#else
  return CreateWaitEventSet(CurrentMemoryContext, size);
#endif
}

// From 17 on extensions name their wait events. Before, these two are not called.
#if PG_VERSION_NUM >= 170000
inline constexpr bool kNamesWaitEvents = true;
inline char** wait_event_names(int* count) {
  return GetWaitEventCustomNames(PG_WAIT_EXTENSION, count);
}
inline std::uint32_t new_wait_event(const char* name) {
  return WaitEventExtensionNew(name);
}
#else
inline constexpr bool kNamesWaitEvents = false;
inline char** wait_event_names(int* count) {
  *count = 0;
  return static_cast<char**>(palloc0(sizeof(char*)));
}
inline std::uint32_t new_wait_event(const char*) {
  return PG_WAIT_EXTENSION;
}
#endif

// --- tables and indexes ---------------------------------------------------------------------

inline IndexScanDesc begin_index_scan(Relation table, Relation index, Snapshot snapshot, int keys) {
#if PG_VERSION_NUM >= 180000
  return index_beginscan(table, index, snapshot, nullptr, keys, 0);
#else
  return index_beginscan(table, index, snapshot, keys, 0);
#endif
}

// Whether the table has got a file of its own in this transaction.
inline bool has_new_file(Relation table) {
#if PG_VERSION_NUM >= 160000
  return table->rd_firstRelfilelocatorSubid != InvalidSubTransactionId;
#else
  return table->rd_firstRelfilenodeSubid != InvalidSubTransactionId;
#endif
}

// Which indexes an update asks entries of. From 16 on these may be the summarizing ones (BRIN) alone.
enum class NewEntries { kNone, kSummarizing, kAll };

inline TM_Result update_row(Relation table, ItemPointer location, TupleTableSlot* row, CommandId command,
                            Snapshot snapshot, bool wait, NewEntries* entries) {
  TM_FailureData failure;
  LockTupleMode mode;
#if PG_VERSION_NUM >= 160000
  TU_UpdateIndexes indexes = TU_None;
#else
  bool indexes = false;
#endif
  const TM_Result result =
      table_tuple_update(table, location, row, command, snapshot, InvalidSnapshot, wait, &failure, &mode, &indexes);
#if PG_VERSION_NUM >= 160000
  *entries = indexes == TU_None          ? NewEntries::kNone
             : indexes == TU_Summarizing ? NewEntries::kSummarizing
                                         : NewEntries::kAll;
#else
  *entries = indexes ? NewEntries::kAll : NewEntries::kNone;
#endif
  return result;
}

inline void insert_index_entries(ResultRelInfo* info, TupleTableSlot* row, EState* state, bool updated,
                                 [[maybe_unused]] bool summarizing) {
#if PG_VERSION_NUM >= 160000
  list_free(ExecInsertIndexTuples(info, row, state, updated, false, nullptr, NIL, summarizing));
#else
  list_free(ExecInsertIndexTuples(info, row, state, updated, false, nullptr, NIL));
#endif
}

// Calls walker for each node below this one.
inline bool walk_expression(Node* node, bool (*walker)(Node*, void*), void* context) {
#if PG_VERSION_NUM >= 160000
  return expression_tree_walker(node, walker, context);
#else
  // Declared there without the types of the walker's arguments.
  return expression_tree_walker(node, reinterpret_cast<bool (*)()>(reinterpret_cast<void (*)()>(walker)), context);
#endif
}

}  // namespace mq::server
