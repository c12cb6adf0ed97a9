// Enabled: whether messages are handled in this database.
//
// A database that was restored from a dump or copied from another holds messages that are handled
// elsewhere, or part of which is still to come. So workers and mq_run work only where the row of
// mq_enabled (the mark) was made for this database of this server. SQL calls and mq.c's hooks make
// and remove the mark. Each process caches what it read last, until the registry changes.
//
// A restore may commit between a look at the mark and a write. So
//   - workers and mq_run hold() in each transaction that acts on messages
//   - mq_poll and sends, which must not hold up a restore, find rows, ask still_here(), then write
//
//   made      by CREATE EXTENSION, unless the session restores a dump; by mq_register_handler where
//             there are no messages and no handlers yet (the schema alone was loaded); by
//             mq_enable()
//   in force  while it has this database's OID and this server's system identifier. pg_upgrade
//             makes another identifier, but writes the catalogs anew, too, so the xmin of the row
//             in pg_extension differs as well. pg_createsubscriber and pg_resetwal leave the
//             catalogs alone. A promoted standby keeps both. A mark is not in force while a
//             subscription writes into mq's tables, unless mq_enable() was called under it
//   removed   by a restore into mq's tables, which the hooks notice; by a worker that finds it not
//             in force
//
// A row of mq_handlers has the id of the mark that it was registered under. If that is this mark,
// the handler runs as the role with its run_as_oid. If not, the row came from another database and
// is not called: mq_enable() looks for a role with its name, and adopts the row if there is one.
#pragma once

#include <optional>
#include <string>

#include "pg/error.hpp"
#include "pg/postgres.hpp"
#include "queue/message.hpp"

namespace mq::enabled {

// All functions need a transaction. They throw 3F000 if the extension is not installed.

// Whether messages are handled here, as cached.
bool here();
// The same; and until the transaction ends the extension cannot be dropped, and no restore commits.
// So if it is true, the transaction sees no restored row. False if the extension is not installed.
bool hold();
// The same as here(), but read anew. For a transaction that does not hold: if it is true, nothing
// that the statements before it saw came by a restore that nobody has enabled since.
bool still_here();
// The same as here(), for a worker that is about to work. Writes a mark anew whose pg_extension row
// or system identifier changed, as after pg_upgrade; removes one that is not in force. Skips the
// row if another session has locked it.
bool confirm();
// Writes the names of renamed roles into mq_handlers, so that a dump does not have the old ones.
// Sets run_as_oid to 0 for dropped roles, whose names others may get. Needs an SPI connection.
void follow_roles();
// Tells users why messages are not handled here; empty if they are.
std::string why_not();
// An error 55000 with that reason.
Error refusal();
// A NOTICE with that reason: what has been registered waits.
void say_waits();

// The id of the mark, if any; locks it, so that it cannot change before the transaction ends. Needs
// an OwnerScope and an SPI connection, as does enable_if_empty().
std::optional<Uuid> lock_id();
// Makes the mark, for mq_enable() and the extension's scripts. Throws 55000 if the catalog is older
// than the library.
void enable();
// Makes the mark if there is no row that could come from another database. Waits for restores.
void enable_if_empty();
// The transaction restores rows into a table of mq: waits for workers' batches, removes the mark.
void restored();

}  // namespace mq::enabled
