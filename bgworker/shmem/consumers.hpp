// Consumers: which sessions listen and poll, by database, so that a commit knows whether anybody
// must be told by NOTIFY. The counters are atomic; no lock covers them.
#pragma once

#include "pg/postgres.hpp"

namespace mq::shared {

// Counts a session of this database that LISTENs to a channel of mq. The session must take itself
// off again. After a crash of a session the server begins with new shared memory.
void add_listener();
void remove_listener();
// Whether no session of this database listens, so that a commit need not NOTIFY. If so the commit
// counts as unnotified until end_unnotified_commit(). False if unknown.
bool begin_unnotified_commit();
void end_unnotified_commit();
// Whether an unnotified commit may be under way: a poll that starts now may not see its messages,
// and its consumer was not notified.
bool unnotified_commit_under_way();
// mq_poll or mq_receive was called in this database.
void note_poll();
// Whether a session listens, waits in mq_receive, or has polled within the last minute. False if unknown.
bool has_consumers();

}  // namespace mq::shared
