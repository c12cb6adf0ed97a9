#include "pg/handler_identity.hpp"

#include <string>

#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/versions.hpp"

extern "C" {
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
}

namespace mq {

namespace {

bool may_execute(Oid function, Oid role) {
  return guard::call([&] { return server::may_execute(function, role); });
}

bool may_use_schema(Oid function, Oid role) {
  return guard::call([&] { return server::may_use_schema(get_func_namespace(function), role); });
}

struct Definer {
  Oid owner;
  bool is_definer;
};

Definer definer_of(Oid function) {
  return guard::call([&] {
    HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
    if (!HeapTupleIsValid(tuple)) elog(ERROR, "cache lookup failed for function %u", function);
    const auto* form = (Form_pg_proc)GETSTRUCT(tuple);
    const Definer definer{form->proowner, form->prosecdef};
    ReleaseSysCache(tuple);
    return definer;
  });
}

std::string name_of(Oid role) {
  const char* name = guard::call([&] { return GetUserNameFromId(role, true); });
  return name != nullptr ? name : std::to_string(role);
}

}  // namespace

bool may_become(Oid role, Oid other) {
  if (role == other) return true;
  return guard::call([&] { return server::can_set_role(role, other); });
}

void check_schema_rights(Oid function, Oid run_as) {
  if (may_use_schema(function, run_as)) return;
  const std::string signature = guard::call([&] { return format_procedure_qualified(function); });
  throw Error("42501", mq::format("permission denied for the schema of {}", signature),
              mq::format("The handler runs as role \"{}\", which may not use it.", name_of(run_as)));
}

HandlerOwner check_handler_rights(Oid function, Oid run_as, bool leased) {
  const auto signature = [&] { return std::string(guard::call([&] { return format_procedure_qualified(function); })); };
  if (!may_execute(function, run_as))
    throw Error("42501", mq::format("permission denied for function {}", signature()),
                mq::format("The handler runs as role \"{}\", which may not execute it.", name_of(run_as)));
  if (leased) check_schema_rights(function, run_as);
  const auto [owner, is_definer] = definer_of(function);
  if (may_become(owner, run_as)) return HandlerOwner::kTrusted;
  if (!is_definer || leased)
    throw Error("42501",
                mq::format("function {} is owned by role \"{}\", which is not a member of role \"{}\"", signature(),
                           name_of(owner), name_of(run_as)),
                "The handler would run as the latter what its owner writes.");
  return HandlerOwner::kOther;
}

HandlerScope::HandlerScope(HandlerOwner owner) {
  GetUserIdAndSecContext(&user_, &context_);
  if (owner == HandlerOwner::kOther || !may_become(user_, GetSessionUserId()))
    SetUserIdAndSecContext(user_, context_ | SECURITY_RESTRICTED_OPERATION);
}

HandlerScope::~HandlerScope() {
  SetUserIdAndSecContext(user_, context_);
}

void pin_worker_settings() {
  guard::call([] {
    SetConfigOption("role", "none", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("exit_on_error", "off", PGC_SUSET, PGC_S_OVERRIDE);
    // The worker sends the arguments of leased calls in this encoding.
    SetConfigOption("client_encoding", GetDatabaseEncodingName(), PGC_SUSET, PGC_S_OVERRIDE);
    if (server::kHasTransactionTimeout) SetConfigOption("transaction_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
  });
}

}  // namespace mq
