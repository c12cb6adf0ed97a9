/*
 * Entries: what shim.c hands over to C++. None of them lets a C++ exception out.
 */
#ifndef MQ_ENTRIES_H
#define MQ_ENTRIES_H

#ifdef __cplusplus
extern "C" {
#endif

#include "postgres.h"

#include <signal.h>

#include "fmgr.h"

/* The bodies of the SQL functions and procedures; for their meanings see their COMMENTs. */
#define MQ_ENTRY(name) Datum name##_entry(FunctionCallInfo fcinfo)
MQ_ENTRY(mq_insert);
MQ_ENTRY(mq_send);
MQ_ENTRY(mq_send_many);
MQ_ENTRY(mq_send_once);
MQ_ENTRY(mq_commit);
MQ_ENTRY(mq_channel_key);
MQ_ENTRY(mq_poll);
MQ_ENTRY(mq_delete);
MQ_ENTRY(mq_keep_alive);
MQ_ENTRY(mq_checkpoint);
MQ_ENTRY(mq_snooze);
MQ_ENTRY(mq_discard);
MQ_ENTRY(mq_clear);
MQ_ENTRY(mq_clear_all);
MQ_ENTRY(mq_register_handler);
MQ_ENTRY(mq_handler_function);
MQ_ENTRY(mq_handler_trouble);
MQ_ENTRY(mq_unregister_handler);
MQ_ENTRY(mq_pause);
MQ_ENTRY(mq_resume);
MQ_ENTRY(mq_run);
MQ_ENTRY(mq_redrive);
MQ_ENTRY(mq_announce);
MQ_ENTRY(mq_worker_seats);
MQ_ENTRY(mq_service_state);
MQ_ENTRY(mq_channel_stats);
MQ_ENTRY(mq_reset_stats);
MQ_ENTRY(mq_leased_calls);
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

/* Shared memory: its size and its locks; and its set-up, once per start of the server. */
extern Size mq_shared_size(void);
extern int mq_shared_locks(void);
extern void mq_shared_startup(void);
extern Size mq_counts_size(void);
extern void mq_counts_startup(void);

/* Whether libpq understands it as a connection string; if not, why, cut to size. */
extern bool mq_conninfo_is_valid(const char* conninfo, char* message, size_t size);

/* The processes. */
extern void mq_launcher_run(void);
extern void mq_worker_run(int seat);

/* Set by the signal handler of a worker when another process told it to end. */
extern volatile sig_atomic_t mq_told_to_end;

/* Of that, the process id of who did. */
extern volatile sig_atomic_t mq_ended_by;

/*
 * Hook: a statement begins. Whether this process is a session of a leased handler: 0 is unknown, < 0 no; then there is
 * no need to call.
 */
extern int mq_runs_leased;
extern void mq_note_leased_call(void);

/* Hooks: an object is about to be dropped. */
extern void mq_object_dropped(Oid class_id, Oid object_id);

/* What a utility statement means to us. Decided before it runs: by its end its tree may be gone. */
typedef struct MqStatement {
  Oid leaves;             /* the database that workers have left for it */
  bool drops;             /* which is gone afterwards */
  bool changes_databases; /* makes, drops, renames one or changes who may connect */
  bool sets;              /* settings of a role or a database, InvalidOid: of all */
  Oid set_database;
  Oid set_role;
  bool commits_prepared;     /* a transaction that was prepared */
  bool unlistens;            /* all channels */
  char listens[NAMEDATALEN]; /* the channel; empty: none */
} MqStatement;

/* Hooks: a utility statement starts, has succeeded, or is over however it ended. */
struct Node;
extern void mq_statement_starts(struct Node* node, bool top_level, MqStatement* statement);
extern void mq_statement_succeeded(const MqStatement* statement);
extern void mq_statement_over(const MqStatement* statement, bool succeeded);

/*
 * Hook: SET CONSTRAINTS, which nothing undoes before the end of the transaction. True: the handler that runs shares
 * that with other calls, so it is to fail here, and runs again without company.
 */
extern bool mq_must_be_alone(void);

/* Hooks: a statement of somebody else changes or removes rows of messages or payloads. */
extern void mq_messages_changed(void);

/*
 * Hooks: the statement that starts is one of ours (ask once for each); a statement changes the rows of a table of
 * this name; transactions that other sessions prepared have been committed.
 */
extern bool mq_is_own_statement(void);
extern bool mq_counts_table(const char* name);
extern void mq_table_changed(Oid relation);
extern void mq_prepared_committed(void);

/* Hook: a statement is about to restore rows from a dump into this relation. */
extern void mq_rows_restored(Oid relation);

#ifdef __cplusplus
}
#endif

#endif
