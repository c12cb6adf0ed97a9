// Requests: what a session asks of the launcher and of workers. Each takes the lock, sets a flag
// or a moment, and sets the latches of the processes that should look.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pg/postgres.hpp"

namespace mq::shared {

// The launcher should look at the database, and its workers should read it again.
void announce_database(Oid database);
void wake_workers(Oid database);  // one waiting worker of each pool
// The same, but for messages that have just been committed: none if no handler takes one of these
// channel names, by their channel_key() without arguments.
//   1. A handler that this does not know of yet is announced after its commit (announce_database()),
//      and then the workers that are woken see the messages.
//   2. A worker publishes the names that it has read only if none was forgotten since.
void wake_handlers(Oid database, std::span<const std::int64_t> names);
// A handler may have been registered: nobody knows which names have one until a worker looks again.
// announce_database() does that, too.
void forget_handled(Oid database);
// Wakes workers if the extension is known to be there; announces the database if not, since the
// extension may just have come.
void wake_or_announce(Oid database);
// The workers of the database should leave, and none should start for 20 s.
void close_database(Oid database);
void open_database(Oid database);  // undoes that
// The process ids of the database's workers, and of the sessions of their leased calls.
std::vector<int> processes_in(Oid database);
// Cancels what the worker with this process id does, since it and this session wait for each
// other's locks. Does nothing to other processes.
void ask_to_give_way(int worker);
// The settings of workers have changed: those of the database and role (InvalidOid: of all) should
// leave before their next claim, so that new ones come.
//   1. A worker with leased calls drains until they are over.
//   2. While one drains, others of its pool that have leased calls go on until it has left. So a
//      pool has at most one process more than it has had slots, however often settings change.
//   3. A worker in a call keeps its slot until the call is over.
void renew_workers(Oid database, Oid role);
void look_around();  // the launcher should read pg_database

}  // namespace mq::shared
