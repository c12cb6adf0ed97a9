#include "handlers/shape.hpp"

#include <string>

#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"

extern "C" {
#include "catalog/pg_proc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
}

namespace mq {

Oid argument_type(Shape shape) {
  if (shape == Shape::kJson) return JSONBOID;
  const Oid schema = Extension::get().schema();
  const Oid message = guard::call([&] {
    return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum("mq_message"), ObjectIdGetDatum(schema));
  });
  if (!OidIsValid(message)) throw Error("42704", "type mq_message does not exist");
  return shape == Shape::kMessage ? message : guard::call([&] { return get_array_type(message); });
}

Shape shape_of(Oid function, bool leased) {
  struct Found {
    Oid argument;
    int arguments;
    char kind;
    bool set;
    bool variadic;
    bool output;  // has OUT or INOUT arguments
    bool exists;
  };
  const Found found = guard::call([&] {
    Found f{InvalidOid, 0, 0, false, false, false, false};
    HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
    if (!HeapTupleIsValid(tuple)) return f;
    const auto* form = (Form_pg_proc)GETSTRUCT(tuple);
    f = {form->pronargs > 0 ? form->proargtypes.values[0] : InvalidOid,
         form->pronargs,
         form->prokind,
         form->proretset,
         OidIsValid(form->provariadic),
         !heap_attisnull(tuple, Anum_pg_proc_proargmodes, nullptr),
         true};
    ReleaseSysCache(tuple);
    return f;
  });
  if (!found.exists) throw Error("42883", mq::format("function with OID {} does not exist", function));
  const bool procedure = found.kind == PROKIND_PROCEDURE;
  const char* why = nullptr;
  if (found.kind == PROKIND_AGGREGATE)
    why = "It is an aggregate function.";
  else if (found.kind == PROKIND_WINDOW)
    why = "It is a window function.";
  else if (found.set)
    why = "It returns a set.";
  else if (procedure && !leased)
    why = "Only in mode \"leased\" may it be a procedure.";
  else if (found.variadic)
    why = "Its argument is VARIADIC.";
  else if (procedure && found.output)
    why = "It has OUT or INOUT arguments.";
  else if (found.arguments != 1)
    why = "It does not have one argument.";
  else
    for (const Shape shape : {Shape::kJson, Shape::kMessage, Shape::kBatch})
      if (found.argument == argument_type(shape) && !(procedure && shape == Shape::kBatch)) return shape;
  if (why == nullptr)
    why = procedure ? "Its argument is neither jsonb nor mq_message."
                    : "Its argument is neither jsonb, mq_message nor mq_message[].";
  const std::string name = guard::call([&] { return format_procedure_qualified(function); });
  throw Error("42883",
              mq::format("{} {} does not have the shape of a handler", procedure ? "procedure" : "function", name), why,
              procedure ? "A procedure that is a handler has mode \"leased\" and one argument, jsonb or mq_message."
                        : "A handler is a function f(jsonb), f(mq_message) or f(mq_message[]) that returns no set.");
}

}  // namespace mq
