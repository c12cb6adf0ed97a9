/*
 * mq.c: what the server loads. It holds the module magic, the settings, the hooks, the functions
 * that SQL calls, and the mains of the processes. Everything else is C++ behind entries.h.
 *
 * Loaded by shared_preload_libraries, _PG_init requests shared memory and its locks, installs the
 * hooks and registers the launcher, which starts the workers. Loaded later, by a session that calls
 * one of its functions, it does none of that. The functions work, and CALL mq_run() handles
 * messages. Only this process sees the variables; _PG_init sets the prev_ hooks.
 */
#include "postgres.h"

#include <limits.h>

#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/parsenodes.h"
#include "nodes/plannodes.h"
#include "parser/parsetree.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"

#include "entries.h"
#include "pg/settings.h"

PG_MODULE_MAGIC;

char *mq_databases = NULL;
int mq_max_databases = 1000;
int mq_max_workers = 2;
int mq_poll_interval = 5000;
int mq_handler_timeout = 300000;
int mq_batch_size = 500;
int mq_leased_sessions = 16;
char* mq_leased_conninfo = NULL;
int mq_notify = MQ_NOTIFY_AUTO;
int mq_dead_retention = 30 * 24 * 60;
int mq_failure_retention = 7 * 24 * 60;
int mq_metrics_channels = 1000;
char* mq_call = NULL;

volatile sig_atomic_t mq_told_to_end = false;
volatile sig_atomic_t mq_ended_by = 0;

static const struct config_enum_entry notify_options[] = {
	{"auto", MQ_NOTIFY_AUTO, false},
	{"on", MQ_NOTIFY_ON, false},
	{"off", MQ_NOTIFY_OFF, false},
	{NULL, 0, false}
};

static object_access_hook_type prev_object_access_hook = NULL;
static ProcessUtility_hook_type prev_process_utility_hook = NULL;
static ExecutorStart_hook_type prev_executor_start_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;
static shmem_request_hook_type prev_shmem_request_hook = NULL;

PGDLLEXPORT void _PG_init(void);
PGDLLEXPORT void mq_launcher_main(Datum main_arg);
PGDLLEXPORT void mq_worker_main(Datum main_arg);

static bool
check_conninfo(char **newval, void **extra, GucSource source)
{
	char		message[256];

	if (mq_conninfo_is_valid(*newval, message, sizeof message))
		return true;
	GUC_check_errdetail("%s", message);
	return false;
}

/* mq.call is for parallel workers: only mq sets it. */
static bool
check_call(char **newval, void **extra, GucSource source)
{
	if (**newval == '\0' || mq_may_set_call())
		return true;
	GUC_check_errdetail("Only mq itself sets it.");
	return false;
}

static const char *show_message_id(void) { return mq_show_call(MQ_CALL_MESSAGE_ID); }
static const char *show_channel_name(void) { return mq_show_call(MQ_CALL_CHANNEL_NAME); }
static const char *show_channel_args(void) { return mq_show_call(MQ_CALL_CHANNEL_ARGS); }
static const char *show_attempt(void) { return mq_show_call(MQ_CALL_ATTEMPT); }
static const char *show_traceparent(void) { return mq_show_call(MQ_CALL_TRACEPARENT); }

/* Settings that nobody sets: each look asks for the call that a handler runs in. */
static void
define_call_settings(void)
{
	static const struct
	{
		const char *name;
		const char *description;
		GucShowHook show;
	}			settings[MQ_CALL_SETTINGS] = {
		{"mq.message_id", "In a handler: the id of the message that it was called with.", show_message_id},
		{"mq.channel_name", "In a handler: the channel name of its message.", show_channel_name},
		{"mq.channel_args", "In a handler: the channel_args of its message.", show_channel_args},
		{"mq.attempt", "In a handler: which attempt of its message this is.", show_attempt},
		{"mq.traceparent", "In a handler: the key traceparent of the headers of its message.", show_traceparent},
	};
	static char *unused[MQ_CALL_SETTINGS];
	const int	flags = GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE | GUC_NO_RESET_ALL;

	for (int i = 0; i < MQ_CALL_SETTINGS; ++i)
		DefineCustomStringVariable(settings[i].name, settings[i].description,
								   "Empty outside of handlers, and where the messages of a call differ.",
								   &unused[i], "", PGC_INTERNAL, flags, NULL, NULL, settings[i].show);
	DefineCustomStringVariable("mq.call", "For parallel workers of a handler: its call.", NULL,
							   &mq_call, "", PGC_SIGHUP, flags | GUC_NO_SHOW_ALL,
							   check_call, NULL, NULL);
}

static void
define_settings(void)
{
	define_call_settings();
	DefineCustomStringVariable("mq.databases",
							   "Databases that workers serve.",
							   "A list of names with commas between, or * for each that has the extension.",
							   &mq_databases, "*", PGC_SIGHUP, GUC_LIST_INPUT,
							   NULL, NULL, NULL);
	DefineCustomIntVariable("mq.max_databases",
							"Most databases with the extension that are served.",
							"Each takes room in shared memory.",
							&mq_max_databases, 1000, 1, 100000,
							/* A session cannot define a PGC_POSTMASTER setting, nor does it need this one. */
							process_shared_preload_libraries_in_progress ? PGC_POSTMASTER : PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mq.max_workers",
							"Most workers for one database.",
							"One rests when there is nothing to do; more start under backlog.",
							&mq_max_workers, 2, 0, 64, PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mq.poll_interval",
							"Longest time between two looks at the queue.",
							"A safety net: workers are woken when a message is sent and when one becomes due.",
							&mq_poll_interval, 5000, 100, 3600 * 1000, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mq.handler_timeout",
							"Longest time that a handler may take for a call, where it was registered without one.",
							"0 is no limit.",
							&mq_handler_timeout, 300000, 0, INT_MAX, PGC_SUSET, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mq.batch_size",
							"Most messages to a transaction, where a handler was registered without a number.",
							NULL,
							&mq_batch_size, 500, 1, 100000, PGC_SUSET, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mq.leased_sessions",
							"Most leased handlers that a worker looks after at once.",
							"Each has a session of its own, which counts in max_connections.",
							&mq_leased_sessions, 16, 1, 512, PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomStringVariable("mq.leased_conninfo",
							   "How the sessions of leased handlers connect to this server.",
							   "A libpq connection string; dbname and user are set by the worker. Empty is the local socket.",
							   &mq_leased_conninfo, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_conninfo, NULL, NULL);
	DefineCustomEnumVariable("mq.notify",
							 "When sending a message sends NOTIFY to consumers outside the server.",
							 "auto: while some session of the database listens to mq or mq_<channel name>.",
							 &mq_notify, MQ_NOTIFY_AUTO, notify_options, PGC_USERSET, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("mq.dead_retention",
							"How long dead letters are kept.",
							"-1 is for ever.",
							&mq_dead_retention, 30 * 24 * 60, -1, INT_MAX, PGC_SIGHUP, GUC_UNIT_MIN,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mq.failure_retention",
							"How long the errors of failed attempts are kept.",
							"-1 is for ever.",
							&mq_failure_retention, 7 * 24 * 60, -1, INT_MAX, PGC_SIGHUP, GUC_UNIT_MIN,
							NULL, NULL, NULL);
	DefineCustomIntVariable("mq.metrics_channels",
							"Most channel names that mq_metrics and mq_histogram show.",
							"Those behind them in the order of their names share one row.",
							&mq_metrics_channels, 1000, 1, 100000, PGC_USERSET, 0,
							NULL, NULL, NULL);
	MarkGUCPrefixReserved("mq");
}

static void
request_shared_memory(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	RequestAddinShmemSpace(mq_shared_size() + mq_counts_size());
	RequestNamedLWLockTranche("mq", mq_shared_locks());
	RequestNamedLWLockTranche("mq counts", 1);
}

static void
start_shared_memory(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();
	mq_shared_startup();
	mq_counts_startup();
}

/* For DROP EXTENSION mq: workers learn of it at COMMIT. */
static void
object_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (prev_object_access_hook)
		prev_object_access_hook(access, class_id, object_id, sub_id, arg);
	if (access == OAT_DROP)
		mq_object_dropped(class_id, object_id);
}

/*
 * Whether a statement that copies or inserts rows into the table restores a dump. A dump turns
 * row_security off before its first statement. It commits each table by itself and has mq_dead first
 * (pg_restore -j has the largest first), so all tables count that a dump has. COPY into mq_msgs or
 * mq_handlers counts in any session: what it brings may be handled elsewhere.
 */
static bool
is_restored(const char *name, bool copied)
{
	static const char *const tables[] = {
		"mq_msgs", "mq_handlers", "mq_dead", "mq_done", "mq_failures", "mq_headless", "mq_cancelled", "mq_prerequisites", "mq_rechecks", "mq_paused", "mq_subscribers", "mq_channel_limits", "mq_timetable", "mq_stats_totals", "mq_stats_deltas"
	};
	const int	in_any_session = 2;

	if (name == NULL)
		return false;
	for (int i = 0; i < (int) lengthof(tables); ++i)
		if (strcmp(name, tables[i]) == 0)
			return !row_security || (copied && i < in_any_session);
	return false;
}

static void
note_restored_rows(PlannedStmt *plan)
{
	ListCell   *cell;

	foreach(cell, plan->resultRelations)
	{
		Oid			relation = rt_fetch(lfirst_int(cell), plan->rtable)->relid;

		if (is_restored(get_rel_name(relation), false))
			mq_rows_restored(relation);
	}
}

static bool
holds_messages(const char *name)
{
	return strcmp(name, "mq_msgs") == 0;
}

/* Whether the statement changes and removes no existing row. */
static bool
only_inserts(const QueryDesc *query)
{
	const PlannedStmt *plan = query->plannedstmt;

	return query->operation == CMD_INSERT && !plan->hasModifyingCTE && IsA(plan->planTree, ModifyTable) &&
		castNode(ModifyTable, plan->planTree)->onConflictAction != ONCONFLICT_UPDATE;
}

/* Where the library is not preloaded this is all of executor_start(). */
static void
hand_over_call(QueryDesc *query, int flags)
{
	if (query->plannedstmt->parallelModeNeeded)
		mq_hand_over_call();
	if (prev_executor_start_hook)
		prev_executor_start_hook(query, flags);
	else
		standard_ExecutorStart(query, flags);
}

/*
 * The row counts, and a running handler's batch, depend on what statements that are not mq's own do
 * to our tables: INSERT, UPDATE, DELETE and MERGE here, TRUNCATE and COPY in the next function.
 */
static void
executor_start(QueryDesc *query, int flags)
{
	bool		ours = mq_is_own_statement();
	ListCell   *cell;

	if (mq_runs_leased >= 0)
		mq_note_leased_call();
	if (!ours && !row_security && query->operation == CMD_INSERT)
		note_restored_rows(query->plannedstmt);
	hand_over_call(query, flags);
	if (ours || query->estate == NULL)
		return;
	foreach(cell, query->estate->es_opened_result_relations)
	{
		Relation	relation = ((ResultRelInfo *) lfirst(cell))->ri_RelationDesc;

		if (mq_watches_table(RelationGetRelationName(relation)))
			mq_table_changed(RelationGetRelid(relation));
		if (holds_messages(RelationGetRelationName(relation)) && !only_inserts(query))
			mq_messages_changed();
		if (mq_has_schedules(RelationGetRelationName(relation)))
			mq_schedules_changed();
	}
}

/* For TRUNCATE and COPY FROM. COMMIT PREPARED is noted in MqStatement. */
static void
note_changed_tables(Node *node)
{
	List	   *tables = NIL;
	ListCell   *cell;

	if (IsA(node, TruncateStmt))
		tables = castNode(TruncateStmt, node)->relations;
	else if (IsA(node, CopyStmt) && castNode(CopyStmt, node)->is_from && castNode(CopyStmt, node)->relation)
		tables = list_make1(castNode(CopyStmt, node)->relation);
	foreach(cell, tables)
	{
		RangeVar   *table = lfirst_node(RangeVar, cell);

		if (mq_watches_table(table->relname))
			mq_table_changed(RangeVarGetRelid(table, NoLock, true));
		if (IsA(node, TruncateStmt) && holds_messages(table->relname))
			mq_messages_changed();
		if (mq_has_schedules(table->relname))
			mq_schedules_changed();
		if (IsA(node, CopyStmt) && is_restored(table->relname, true))
			mq_rows_restored(RangeVarGetRelid(table, NoLock, true));
	}
}

static void
run_utility(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
			ProcessUtilityContext context, ParamListInfo params,
			QueryEnvironment *query_env, DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_process_utility_hook)
		prev_process_utility_hook(pstmt, query_string, read_only_tree, context, params, query_env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query_string, read_only_tree, context, params, query_env, dest, qc);
}

/*
 * TRUNCATE of the view mq_payloads, which was a table in the original schema: returns the statement
 * with mq_msgs in its place. `owner`: of the view, as whom the statement is to run, since the user
 * may truncate the view. Where it would reach anything but mq_msgs it runs as the user.
 */
static PlannedStmt *
truncate_messages(PlannedStmt *pstmt, Oid *owner)
{
	TruncateStmt *statement = castNode(TruncateStmt, pstmt->utilityStmt);
	bool		alone = list_length(statement->relations) == 1 && statement->behavior == DROP_RESTRICT;
	ListCell   *cell;

	foreach(cell, statement->relations)
		if (strcmp(lfirst_node(RangeVar, cell)->relname, "mq_payloads") == 0)
			break;
	if (cell == NULL)
		return pstmt;
	pstmt = copyObject(pstmt);
	foreach(cell, castNode(TruncateStmt, pstmt->utilityStmt)->relations)
	{
		RangeVar   *table = lfirst_node(RangeVar, cell);
		Oid			relation = strcmp(table->relname, "mq_payloads") == 0 ? RangeVarGetRelid(table, NoLock, true) : InvalidOid;
		Oid			found = OidIsValid(relation) && get_rel_relkind(relation) == RELKIND_VIEW ?
			mq_owner_of_payloads(relation) : InvalidOid;

		if (!OidIsValid(found))
			continue;
		if (alone && !mq_has_truncate_triggers())
		{
			AclResult	allowed = pg_class_aclcheck(relation, GetUserId(), ACL_TRUNCATE);

			if (allowed != ACLCHECK_OK)
				aclcheck_error(allowed, OBJECT_VIEW, table->relname);
			*owner = found;
		}
		table->schemaname = get_namespace_name(get_rel_namespace(relation));
		table->relname = pstrdup("mq_msgs");
	}
	return pstmt;
}

/* Reads the tree of a statement only before that runs: by its end the tree may be gone. */
static void
process_utility(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *query_env, DestReceiver *dest, QueryCompletion *qc)
{
	MqStatement statement;
	volatile bool succeeded = false;

	if (mq_runs_leased >= 0)
		mq_note_leased_call();
	if (IsA(pstmt->utilityStmt, ConstraintsSetStmt) && mq_wants_exclusive())
		ereport(ERROR, (errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
						errmsg("SET CONSTRAINTS in a transaction that other messages are handled in")));
	if (IsA(pstmt->utilityStmt, TruncateStmt))
	{
		Oid			owner = InvalidOid;
		Oid			user;
		int			security;

		pstmt = truncate_messages(pstmt, &owner);
		if (OidIsValid(owner))
		{
			note_changed_tables(pstmt->utilityStmt);
			GetUserIdAndSecContext(&user, &security);
			SetUserIdAndSecContext(owner, security | SECURITY_LOCAL_USERID_CHANGE);
			run_utility(pstmt, query_string, false, context, params, query_env, dest, qc);
			SetUserIdAndSecContext(user, security);
			return;
		}
	}
	note_changed_tables(pstmt->utilityStmt);
	mq_statement_starts(pstmt->utilityStmt, context == PROCESS_UTILITY_TOPLEVEL, &statement);
	if (!OidIsValid(statement.leaves))
	{
		run_utility(pstmt, query_string, read_only_tree, context, params, query_env, dest, qc);
		mq_statement_succeeded(&statement);
		return;
	}
	PG_TRY();
	{
		run_utility(pstmt, query_string, read_only_tree, context, params, query_env, dest, qc);
		mq_statement_succeeded(&statement);
		succeeded = true;
	}
	PG_FINALLY();
	{
		mq_statement_over(&statement, succeeded);
	}
	PG_END_TRY();
}

void
_PG_init(void)
{
	BackgroundWorker launcher;

	if (!process_shared_preload_libraries_in_progress)
	{
		define_settings();
		prev_executor_start_hook = ExecutorStart_hook;
		ExecutorStart_hook = hand_over_call;
		return;
	}
	define_settings();

	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared_memory;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = start_shared_memory;
	prev_object_access_hook = object_access_hook;
	object_access_hook = object_access;
	prev_process_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	prev_executor_start_hook = ExecutorStart_hook;
	ExecutorStart_hook = executor_start;

	memset(&launcher, 0, sizeof launcher);
	launcher.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	launcher.bgw_start_time = BgWorkerStart_RecoveryFinished;
	launcher.bgw_restart_time = 1;
	strlcpy(launcher.bgw_library_name, "mq", sizeof launcher.bgw_library_name);
	strlcpy(launcher.bgw_function_name, "mq_launcher_main", sizeof launcher.bgw_function_name);
	strlcpy(launcher.bgw_name, "mq launcher", sizeof launcher.bgw_name);
	strlcpy(launcher.bgw_type, "mq launcher", sizeof launcher.bgw_type);
	/* pg_upgrade (postgres -b) must have both of its clusters for itself. */
	if (!IsBinaryUpgrade)
		RegisterBackgroundWorker(&launcher);
}

/*
 * Installs the handlers of SIGHUP and SIGTERM. The new process ignores a SIGHUP that comes between
 * the fork and here, and has the postmaster's old values. So it reads the configuration once more.
 */
static void
catch_signals(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	ConfigReloadPending = true;
}

/* SIGTERM of a worker. If the process itself sent it, the handler that runs did, and is charged. */
static void
end_worker(int signal, siginfo_t *info, void *context)
{
	int			saved_errno = errno;

	if (info->si_pid != MyProcPid)
		mq_told_to_end = true;
	mq_ended_by = info->si_pid;
	die(signal);
	errno = saved_errno;		/* newer servers leave that to the caller of die() */
}

void
mq_cancel_signal(int signal)
{
	int			saved_errno = errno;

	if (!mq_take_cancel())
		StatementCancelHandler(signal);
	errno = saved_errno;
}

void
mq_launcher_main(Datum main_arg)
{
	catch_signals();
	mq_launcher_run();
	proc_exit(1);
}

void
mq_worker_main(Datum main_arg)
{
	struct sigaction action;

	catch_signals();
	memset(&action, 0, sizeof action);
	sigemptyset(&action.sa_mask);
	action.sa_sigaction = end_worker;
	action.sa_flags = SA_RESTART | SA_SIGINFO;
	sigaction(SIGTERM, &action, NULL);
	mq_worker_run(DatumGetInt32(main_arg));
	proc_exit(0);
}

#define EXPORT(name) \
	PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
	PG_FUNCTION_INFO_V1(name); \
	Datum name(PG_FUNCTION_ARGS) { return name##_entry(fcinfo); }

EXPORT(mq_insert)
EXPORT(mq_send)
EXPORT(mq_send_many)
EXPORT(mq_send_once)
EXPORT(mq_commit)
EXPORT(mq_status)
EXPORT(mq_wait)
EXPORT(mq_call_and_wait)
EXPORT(mq_subscribe)
EXPORT(mq_unsubscribe)
EXPORT(mq_publish)
EXPORT(mq_channel_key)
EXPORT(mq_poll)
EXPORT(mq_delete)
EXPORT(mq_keep_alive)
EXPORT(mq_checkpoint)
EXPORT(mq_receive)
EXPORT(mq_ack)
EXPORT(mq_nack)
EXPORT(mq_extend)
EXPORT(mq_snooze)
EXPORT(mq_discard)
EXPORT(mq_progress)
EXPORT(mq_cancel)
EXPORT(mq_telling_calls)
EXPORT(mq_clear)
EXPORT(mq_clear_all)
EXPORT(mq_register_handler)
EXPORT(mq_handler_function)
EXPORT(mq_handler_trouble)
EXPORT(mq_unregister_handler)
EXPORT(mq_pause)
EXPORT(mq_resume)
EXPORT(mq_limit)
EXPORT(mq_unlimit)
EXPORT(mq_limit_use)
EXPORT(mq_run)
EXPORT(mq_redrive)
EXPORT(mq_schedule)
EXPORT(mq_unschedule)
EXPORT(mq_next_times)
EXPORT(mq_announce)
EXPORT(mq_worker_slots)
EXPORT(mq_service_state)
EXPORT(mq_channel_stats)
EXPORT(mq_channel_histograms)
EXPORT(mq_rate_state)
EXPORT(mq_limits_without_room)
EXPORT(mq_reset_stats)
EXPORT(mq_leased_calls)
EXPORT(mq_cancelled_calls)
EXPORT(mq_row_holders)
EXPORT(mq_server_mode)
EXPORT(mq_has_consumers)
EXPORT(mq_connection_refusals)
EXPORT(mq_unsettled)
EXPORT(mq_failing_workers)
EXPORT(mq_obstacles)
EXPORT(mq_grant)
EXPORT(mq_revoke)
EXPORT(mq_enable)
EXPORT(mq_enabled_state)
EXPORT(mq_enabled_stays)

/* The name of mq_worker_slots up to 0.1.1, for catalogs that are not updated yet. */
PGDLLEXPORT Datum mq_worker_seats(PG_FUNCTION_ARGS);
PG_FUNCTION_INFO_V1(mq_worker_seats);
Datum mq_worker_seats(PG_FUNCTION_ARGS) { return mq_worker_slots_entry(fcinfo); }
