/*
 * Entries: the C++ functions that mq.c calls, and the variables that both share. No function lets a
 * C++ exception out. Only this process sees the variables. mq.c requests the locks of shared
 * memory.
 */
#ifndef MQ_ENTRIES_H
#define MQ_ENTRIES_H

#ifdef __cplusplus
extern "C" {
#endif

#include "postgres.h"

#include <signal.h>

#include "fmgr.h"

/* The bodies of the SQL functions and procedures. The COMMENT of each says what it does. */
#define MQ_ENTRY(name) Datum name##_entry(FunctionCallInfo fcinfo)
MQ_ENTRY(mq_insert);
MQ_ENTRY(mq_send);
MQ_ENTRY(mq_send_many);
MQ_ENTRY(mq_send_once);
MQ_ENTRY(mq_commit);
MQ_ENTRY(mq_status);
MQ_ENTRY(mq_wait);
MQ_ENTRY(mq_call_and_wait);
MQ_ENTRY(mq_subscribe);
MQ_ENTRY(mq_unsubscribe);
MQ_ENTRY(mq_publish);
MQ_ENTRY(mq_channel_key);
MQ_ENTRY(mq_poll);
MQ_ENTRY(mq_delete);
MQ_ENTRY(mq_keep_alive);
MQ_ENTRY(mq_checkpoint);
MQ_ENTRY(mq_receive);
MQ_ENTRY(mq_ack);
MQ_ENTRY(mq_nack);
MQ_ENTRY(mq_extend);
MQ_ENTRY(mq_snooze);
MQ_ENTRY(mq_discard);
MQ_ENTRY(mq_progress);
MQ_ENTRY(mq_cancel);
MQ_ENTRY(mq_telling_calls);
MQ_ENTRY(mq_clear);
MQ_ENTRY(mq_clear_all);
MQ_ENTRY(mq_register_handler);
MQ_ENTRY(mq_handler_function);
MQ_ENTRY(mq_handler_trouble);
MQ_ENTRY(mq_unregister_handler);
MQ_ENTRY(mq_pause);
MQ_ENTRY(mq_resume);
MQ_ENTRY(mq_limit);
MQ_ENTRY(mq_unlimit);
MQ_ENTRY(mq_limit_use);
MQ_ENTRY(mq_run);
MQ_ENTRY(mq_redrive);
MQ_ENTRY(mq_schedule);
MQ_ENTRY(mq_unschedule);
MQ_ENTRY(mq_next_times);
MQ_ENTRY(mq_announce);
MQ_ENTRY(mq_worker_slots);
MQ_ENTRY(mq_service_state);
MQ_ENTRY(mq_channel_stats);
MQ_ENTRY(mq_channel_histograms);
MQ_ENTRY(mq_rate_state);
MQ_ENTRY(mq_limits_without_room);
MQ_ENTRY(mq_reset_stats);
MQ_ENTRY(mq_leased_calls);
MQ_ENTRY(mq_cancelled_calls);
MQ_ENTRY(mq_row_holders);
MQ_ENTRY(mq_server_mode);
MQ_ENTRY(mq_has_consumers);
MQ_ENTRY(mq_connection_refusals);
MQ_ENTRY(mq_unsettled);
MQ_ENTRY(mq_failing_workers);
MQ_ENTRY(mq_obstacles);
MQ_ENTRY(mq_grant);
MQ_ENTRY(mq_revoke);
MQ_ENTRY(mq_enable);
MQ_ENTRY(mq_enabled_state);
MQ_ENTRY(mq_enabled_stays);
#undef MQ_ENTRY

/* Shared memory: its size in bytes, its number of locks, and its set-up when the server starts. */
extern Size mq_shared_size(void);
extern int mq_shared_locks(void);
extern void mq_shared_startup(void);
extern Size mq_counts_size(void);
extern void mq_counts_startup(void);

/*
 * Whether libpq can parse the connection string. If not, `message` gets the reason, cut to `size`
 * bytes with its terminating zero.
 */
extern bool mq_conninfo_is_valid(const char* conninfo, char* message, size_t size);

/* The mains of the processes. `slot` is the worker slot that the launcher reserved. */
extern void mq_launcher_run(void);
extern void mq_worker_run(int slot);

/* Set by the SIGTERM handler of a worker: another process has terminated it. */
extern volatile sig_atomic_t mq_told_to_end;

/* Set by the same: the process that sent the last SIGTERM, perhaps this one; 0: none was sent. */
extern volatile sig_atomic_t mq_ended_by;

/*
 * Hook: a statement begins. mq_runs_leased says whether this process is a session of a leased
 * handler: > 0 is yes, 0 not known yet, < 0 no. Below 0 the hooks need not call
 * mq_note_leased_call. It begins the in-flight record of the leased call that the session runs.
 */
extern int mq_runs_leased;
extern void mq_note_leased_call(void);

/*
 * The SIGINT handler of processes that call handlers. mq_take_cancel: whether mq_cancel has sent the signal, and
 * then whether the call that runs is interrupted is its matter.
 */
extern void mq_cancel_signal(int signal);
extern bool mq_take_cancel(void);

/*
 * The settings that tell about the call that a handler runs in (queue/call_settings.hpp).
 * mq_show_call: the value, in the current memory context; empty outside of a call.
 * mq_hand_over_call: hook; a query may start parallel workers. Sets mq.call for them.
 * mq_may_set_call: whether mq itself sets mq.call now.
 */
typedef enum MqCallSetting {
  MQ_CALL_MESSAGE_ID,
  MQ_CALL_CHANNEL_NAME,
  MQ_CALL_CHANNEL_ARGS,
  MQ_CALL_ATTEMPT,
  MQ_CALL_TRACEPARENT,
  MQ_CALL_SETTINGS /* how many */
} MqCallSetting;
extern const char* mq_show_call(MqCallSetting setting);
extern void mq_hand_over_call(void);
extern bool mq_may_set_call(void);

/* Hook: an object is about to be dropped. If it is mq, workers learn of it at COMMIT. */
extern void mq_object_dropped(Oid class_id, Oid object_id);

/* What a utility statement means to mq. Filled before it runs: by its end its tree may be gone. */
typedef struct MqStatement {
  Oid leaves;                /* the database that was closed to workers; InvalidOid: none */
  bool drops;                /* the statement drops that database */
  bool changes_databases;    /* CREATE, DROP or RENAME DATABASE, ALTER DATABASE with options */
  bool sets;                 /* ALTER DATABASE or ALTER ROLE ... SET or RESET */
  Oid set_database;          /* of `sets`; InvalidOid: all */
  Oid set_role;              /* of `sets`; InvalidOid: all */
  bool commits_prepared;     /* COMMIT PREPARED */
  bool unlistens;            /* UNLISTEN * or DISCARD ALL */
  char listens[NAMEDATALEN]; /* the channel of LISTEN; empty: none */
} MqStatement;

/*
 * Hooks: a utility statement starts; has succeeded; or, if `leaves` is set, is over by success or
 * error. The last one opens that database to workers again, unless it was dropped.
 */
struct Node;
extern void mq_statement_starts(struct Node* node, bool top_level, MqStatement* statement);
extern void mq_statement_succeeded(const MqStatement* statement);
extern void mq_statement_over(const MqStatement* statement, bool succeeded);

/*
 * Hook: SET CONSTRAINTS starts, which nothing undoes before the end of the transaction. True: a
 * handler runs it in a transaction that other calls share. Then it must fail; the handler runs
 * again exclusively.
 */
extern bool mq_wants_exclusive(void);

/* Hooks: a statement that is not mq's own changes or removes rows of mq_msgs. */
extern void mq_messages_changed(void);

/*
 * Hooks for the row counts.
 * mq_is_own_statement: whether the statement that starts is mq's own. Call it once for each.
 * mq_watches_table: whether the rows of a table of this name are counted, or cached (the limits of channels).
 * mq_table_changed: a statement that is not mq's own changes such a table; InvalidOid is ignored.
 * mq_prepared_committed: COMMIT PREPARED has run. Drops the row counts of the database, and wakes
 * workers.
 */
extern bool mq_is_own_statement(void);
extern bool mq_watches_table(const char* name);
extern void mq_table_changed(Oid relation);
extern void mq_prepared_committed(void);

/*
 * Hooks: whether a table of this name holds schedules; a statement that is not mq's own changes it, so
 * that a worker should look at it after the commit.
 */
extern bool mq_has_schedules(const char* name);
extern void mq_schedules_changed(void);

/* Hook: the owner of the view mq_payloads of the extension; InvalidOid: the relation is another. */
extern Oid mq_owner_of_payloads(Oid relation);
/* Hook: whether a TRUNCATE of mq_msgs calls triggers. */
extern bool mq_has_truncate_triggers(void);

/* Hooks: a statement is about to restore rows from a dump into this relation. */
extern void mq_rows_restored(Oid relation);

#ifdef __cplusplus
}
#endif

#endif
