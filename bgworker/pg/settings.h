/*
 * Settings: the GUC variables of mq. mq.c defines them, every process reads them.
 */
#ifndef MQ_SETTINGS_H
#define MQ_SETTINGS_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MQ_NOTIFY_OFF, MQ_NOTIFY_ON, MQ_NOTIFY_AUTO };

extern char* mq_databases;       /* mq.databases: "*", or names with commas between */
extern int mq_max_databases;     /* mq.max_databases: room for so many in shared memory */
extern int mq_max_workers;       /* mq.max_workers: most workers of one database */
extern int mq_poll_interval;     /* mq.poll_interval: ms */
extern int mq_handler_timeout;   /* mq.handler_timeout: ms; 0 is none */
extern int mq_batch_size;        /* mq.batch_size: messages */
extern int mq_leased_sessions;   /* mq.leased_sessions: most sessions of a worker */
extern char* mq_leased_conninfo; /* mq.leased_conninfo: how these sessions connect */
extern int mq_notify;            /* mq.notify: MQ_NOTIFY_... */
extern int mq_dead_retention;    /* mq.dead_retention: minutes; -1 is for ever */
extern int mq_failure_retention; /* mq.failure_retention: minutes; -1 is for ever */
extern int mq_metrics_channels;  /* mq.metrics_channels: names that the metrics show */
extern char* mq_call;            /* mq.call, hidden: see queue/call_settings.hpp */

#ifdef __cplusplus
}
#endif

#endif
