// The shapes of handlers: what a function must look like to be one. api/handlers.cpp, FmgrCaller
// and signature.cpp ask. Stateless. Needs a transaction, to read the system catalogs.
#pragma once

#include "handlers/registry.hpp"
#include "pg/postgres.hpp"

namespace mq {

// The argument type of a shape in this database. Throws 42704 if there is no type mq_message.
Oid argument_type(Shape shape);
// The shape of a function, or with `leased` also of a procedure. Throws 42883 if it has no
// handler's shape; the hint names the shapes.
Shape shape_of(Oid function, bool leased);

}  // namespace mq
