// Connects: whether a worker, or a session, can connect to a database as a role, as far as the catalogs tell. Asked in
// any session that is in a transaction, and by the launcher.
#pragma once

#include <string>

#include "postgres.hpp"

namespace mq {

// Whether mq.databases names the database. Its names are folded to lower case unless they are in double quotes, as in
// the server's own lists. The launcher and whoever asks read it anew each time: it changes with a reload.
bool is_named(const char* database);

// Why the launcher passes over this database, and what to do about it; empty: it does not.
std::string serving_obstacle(Oid database);

// What keeps it from connecting, and what to do about it, in a sentence; empty: nothing that is known. A role that is
// InvalidOid is the bootstrap superuser.
std::string connect_obstacle(Oid database, Oid role);

// What keeps another session of a leased handler from connecting, while so many of this process do.
std::string session_obstacle(Oid database, Oid role, int connecting);

// The same as an error of mq_register_handler's run_as, for what is there to stay: no right to connect.
void check_may_connect(Oid database, Oid role);

}  // namespace mq
