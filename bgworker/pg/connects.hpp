// Connects: whether a worker or a session can connect to a database as a role, as far as the
// catalogs tell. The launcher, workers, mq_register_handler and mq_health() call it. All functions
// but is_named() need a transaction. No state.
#pragma once

#include <string>

#include "pg/postgres.hpp"

namespace mq {

// Whether mq.databases is "*" or names the database. Names are folded to lower case unless they are
// in double quotes, as in the server's own lists. Each call reads the setting anew.
bool is_named(const char* database);

// Why the launcher passes over this database, and what to do about it; empty: it does not.
std::string serving_obstacle(Oid database);

// The reason that keeps a worker from connecting to the database as the role, and what to do about it; empty:
// nothing that is known. InvalidOid is the bootstrap superuser, which nothing keeps from it.
std::string connect_obstacle(Oid database, Oid role);

// The reason that keeps another session of a leased handler from connecting, while this process is opening
// `connecting` others; empty: nothing that is known.
std::string session_obstacle(Oid database, Oid role, int connecting);

// For run_as of mq_register_handler: throws 42501 if the role has no right to connect to the
// database. Other obstacles may pass by themselves, so they are not looked at.
void check_may_connect(Oid database, Oid role);

}  // namespace mq
