// Enabled: whether messages are handled in this database.
//
// A database that was restored from a dump or copied from another holds messages that are handled elsewhere, or whose
// payloads are still to come. So workers and mq_run work only where mq_enabled has a mark that was made for this very
// database of this very server:
//
//   made       by CREATE EXTENSION, unless the session restores a dump; by mq_register_handler where there are no
//              messages and no handlers yet (a dump of the schema alone was loaded); by mq_enable()
//   in force   while the database's oid and the server's system identifier are those of the mark. pg_upgrade makes
//   another
//              system identifier, and makes the rows of the catalogs anew, so the xmin of the row in pg_extension is
//              another one too; pg_createsubscriber and pg_resetwal leave the catalogs alone. A promoted standby has
//              both as they were. Not while a subscription writes into our tables, unless mq_enable() was called under
//              it
//   forgotten  when a dump is restored into our tables (which the hooks in shim.c notice), and when a worker finds it
//   in
//              a database that it was not made for
//
// A row of mq_handlers has the id of the mark that it was registered under. One that came by replication has another.
// The role that it runs as is that of its oid where it was registered, and elsewhere the one of its name, which
// mq_enable() looks for: where there is none, the row keeps its foreign id, and is not called.
#pragma once

#include <optional>
#include <string>

#include "../error.hpp"
#include "../message.hpp"
#include "postgres.hpp"

namespace mq::enabled {

// Within a transaction, as all here. Kept until the catalogs or the mark change.
bool here();
// The same, with a new look at the mark: it sees what the statements before it have seen.
bool here_at_last();
// here(), for who is about to work: puts the mark in order after pg_upgrade, or forgets one of elsewhere. Waits for
// nobody.
bool confirm();
// Brings the names of roles that were renamed into mq_handlers, lest a dump have the old ones, and marks the handlers
// of dropped roles, whose names others may get.
void follow_roles();
// Why it is not; empty if it is. For whoever has to do something about it.
std::string why_not();
// 55000 with that.
Error refusal();

// The id of the mark, which cannot change before the transaction ends.
std::optional<Uuid> lock_id();
// Makes the mark, for mq_enable() and CREATE EXTENSION.
void enable();
// Makes it if nothing is here that could have come from elsewhere.
void enable_if_empty();
// The transaction restores rows into one of our tables.
void restored();

}  // namespace mq::enabled
