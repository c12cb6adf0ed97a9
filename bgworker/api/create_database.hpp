// Whether the server accepts the options of CREATE DATABASE, as far as that can be told before it
// runs.
//
// The utility hook (api/utility.cpp) asks before it sends workers out of a template: they should
// not leave for a statement that the server refuses. ICU locales and rules are left to the server,
// which rewrites them before it compares them. The file owns no state.
#pragma once

#include "pg/postgres.hpp"

extern "C" {
#include "nodes/parsenodes.h"
}

namespace mq {

// Called inside guard::call, as the next one. Whether a copy of the database `source` can be made
// with the statement's options. Does not check rights, nor the values of TEMPLATE, OWNER and
// TABLESPACE. May raise an error that the server would.
bool takes_options(const CreatedbStmt* statement, Oid source);
// Whether the database can move to the tablespace, or its copy be made there: it has no files
// there.
bool tablespace_has_room(Oid database, Oid tablespace);

}  // namespace mq
