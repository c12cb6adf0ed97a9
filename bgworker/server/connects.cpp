#include "connects.hpp"

#include <fmt/core.h>

#include "fence.hpp"

extern "C" {
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "storage/procarray.h"
#include "utils/acl.h"
#include "utils/syscache.h"
}

namespace mq {

namespace {

struct Facts {
  bool role_exists;
  bool login;
  bool superuser;
  bool connect;
  int limit;  // of connections to the database; -1: none
  int connections;
  NameData role;
  NameData database;
};

Facts look(Oid database, Oid role) {
  Facts facts{};
  facts.limit = -1;
  HeapTuple tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
  if (!HeapTupleIsValid(tuple)) return facts;
  const auto* authid = (Form_pg_authid)GETSTRUCT(tuple);
  facts.role_exists = true;
  facts.login = authid->rolcanlogin;
  facts.superuser = authid->rolsuper;
  facts.role = authid->rolname;
  ReleaseSysCache(tuple);
  tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
  if (!HeapTupleIsValid(tuple)) {
    facts.connect = true;
    return facts;
  }
  const auto* form = (Form_pg_database)GETSTRUCT(tuple);
  facts.database = form->datname;
  facts.limit = form->datconnlimit;
  ReleaseSysCache(tuple);
#if PG_VERSION_NUM >= 160000
  facts.connect = object_aclcheck(DatabaseRelationId, database, role, ACL_CONNECT) == ACLCHECK_OK;
#else
  facts.connect = pg_database_aclcheck(database, role, ACL_CONNECT) == ACLCHECK_OK;
#endif
  facts.connections = facts.limit >= 0 ? CountDBConnections(database) : 0;
  return facts;
}

}  // namespace

std::string connect_obstacle(Oid database, Oid role) {
  if (!OidIsValid(role)) return {};
  const Facts facts = fence::call([&] { return look(database, role); });
  const char* name = NameStr(facts.role);
  if (!facts.role_exists) return "the role does not exist any more: mq_register_handler with another run_as";
#if PG_VERSION_NUM < 170000
  if (!facts.login) return fmt::format("role \"{}\" may not log in: ALTER ROLE ... LOGIN", name);
#endif
  if (!facts.connect)
    return fmt::format("role \"{}\" may not connect to database \"{}\": GRANT CONNECT ON DATABASE ... TO it", name,
                       NameStr(facts.database));
  if (!facts.superuser && facts.limit >= 0 && facts.connections > facts.limit)
    return fmt::format(
        "database \"{}\" has a CONNECTION LIMIT of {}, and {} connections: ALTER DATABASE ... CONNECTION LIMIT",
        NameStr(facts.database), facts.limit, facts.connections);
  return {};
}

void check_may_connect(Oid database, Oid role) {
  const Facts facts = fence::call([&] { return look(database, role); });
  if (facts.connect || !facts.role_exists) return;
  throw Error(
      "42501",
      fmt::format("role \"{}\" may not connect to database \"{}\"", NameStr(facts.role), NameStr(facts.database)),
      "Workers connect as the role that the handler runs as. GRANT CONNECT ON DATABASE to it, or register the handler "
      "with another run_as.");
}

}  // namespace mq
