// Whether the server takes the options of CREATE DATABASE, as far as that can be told before it runs: nobody is sent
// out of a template for a statement that is refused. What cannot be told is left to the server: ICU locales and rules,
// which it rewrites before it compares them.
#pragma once

#include "postgres.hpp"

extern "C" {
#include "nodes/parsenodes.h"
}

namespace mq {

// Inside fence::call. The rights, and TEMPLATE, OWNER and TABLESPACE as such, are not looked at. May raise what the
// server would.
bool takes_options(const CreatedbStmt* statement, Oid source);
// Whether a database can move to the tablespace, or a copy be made there, as far as its files in it say.
bool tablespace_has_room(Oid database, Oid tablespace);

}  // namespace mq
