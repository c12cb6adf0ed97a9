#include "pg/connects.hpp"

#include <cstring>

#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/settings.h"
#include "pg/versions.hpp"

extern "C" {
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "storage/procarray.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
#include "utils/varlena.h"
}

namespace mq {

namespace {

struct Facts {
  bool role_exists;
  bool login;
  bool superuser;
  bool connect;
  bool allowed;          // the database takes connections
  int limit;             // of connections to the database; -1: none
  int connections;       // to the database; 0 where it has no limit
  int role_limit;        // of connections of the role; -1: none
  int role_connections;  // of the role; 0 where it has no limit
  NameData role;
  NameData database;
};

Facts look(Oid database, Oid role) {
  Facts facts{};
  facts.limit = facts.role_limit = -1;
  facts.allowed = true;
  HeapTuple tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
  if (!HeapTupleIsValid(tuple)) return facts;
  const auto* authid = (Form_pg_authid)GETSTRUCT(tuple);
  facts.role_exists = true;
  facts.login = authid->rolcanlogin;
  facts.superuser = authid->rolsuper;
  facts.role = authid->rolname;
  facts.role_limit = authid->rolconnlimit;
  ReleaseSysCache(tuple);
  tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
  if (!HeapTupleIsValid(tuple)) {
    facts.connect = true;
    return facts;
  }
  const auto* form = (Form_pg_database)GETSTRUCT(tuple);
  facts.database = form->datname;
  facts.limit = form->datconnlimit;
  facts.allowed = form->datallowconn;
  ReleaseSysCache(tuple);
  facts.connect = server::may_connect(database, role);
  facts.connections = facts.limit >= 0 ? CountDBConnections(database) : 0;
  facts.role_connections = facts.role_limit >= 0 ? CountUserBackends(role) : 0;
  return facts;
}

}  // namespace

bool is_named(const char* database) {
  if (strcmp(mq_databases, "*") == 0) return true;
  return guard::call([&] {
    char* copy = pstrdup(mq_databases);
    List* names = NIL;
    bool found = false;
    if (SplitIdentifierString(copy, ',', &names)) {
      ListCell* cell = nullptr;
      foreach (cell, names) found = found || strcmp(static_cast<const char*>(lfirst(cell)), database) == 0;
    }
    list_free(names);
    pfree(copy);
    return found;
  });
}

std::string serving_obstacle(Oid database) {
  struct Row {
    NameData name;
    const char* quoted;
    bool is_template;
    bool allows;
    bool is_list;
  };
  const Row row = guard::call([&] {
    Row r{};
    HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
    if (!HeapTupleIsValid(tuple)) return r;
    const auto* form = (Form_pg_database)GETSTRUCT(tuple);
    r = {form->datname, nullptr, form->datistemplate, form->datallowconn, true};
    ReleaseSysCache(tuple);
    r.quoted = pstrdup(quote_identifier(NameStr(r.name)));  // copied, since it may be r.name itself
    List* names = NIL;
    r.is_list = strcmp(mq_databases, "*") == 0 || SplitIdentifierString(pstrdup(mq_databases), ',', &names);
    return r;
  });
  if (row.quoted == nullptr) return {};
  if (row.is_template)
    return mq::format("it is a template: ALTER DATABASE {} IS_TEMPLATE false lets it be served", row.quoted);
  if (!row.allows)
    return mq::format("it lets nobody connect: ALTER DATABASE {} ALLOW_CONNECTIONS true lets it be served", row.quoted);
  if (!row.is_list)
    return mq::format("mq.databases = {} is no list of names with commas between, so no database is served",
                      mq_databases);
  if (!is_named(NameStr(row.name)))
    return mq::format(
        "mq.databases = {} does not name it: add {}{}", mq_databases, row.quoted,
        row.quoted[0] == '"' ? ", with the double quotes: without them names are folded to lower case" : "");
  return {};
}

std::string connect_obstacle(Oid database, Oid role) {
  if (!OidIsValid(role)) return {};
  const Facts facts = guard::call([&] { return look(database, role); });
  const char* name = NameStr(facts.role);
  if (!facts.role_exists) return "the role does not exist any more: mq_register_handler with another run_as";
  if (server::kWorkersNeedLogin && !facts.login)
    return mq::format("role \"{}\" may not log in: ALTER ROLE ... LOGIN", name);
  if (!facts.connect)
    return mq::format("role \"{}\" may not connect to database \"{}\": GRANT CONNECT ON DATABASE ... TO it", name,
                      NameStr(facts.database));
  if (!facts.superuser && facts.limit >= 0 && facts.connections > facts.limit)
    return mq::format(
        "database \"{}\" has a CONNECTION LIMIT of {}, and {} connections: ALTER DATABASE ... CONNECTION LIMIT",
        NameStr(facts.database), facts.limit, facts.connections);
  return {};
}

std::string session_obstacle(Oid database, Oid role, int connecting) {
  const Facts facts = guard::call([&] { return look(database, role); });
  const char* name = NameStr(facts.role);
  const char* of_database = NameStr(facts.database);
  if (!facts.role_exists) return "the role does not exist any more: mq_register_handler with another run_as";
  if (!facts.login) return mq::format("role \"{}\" may not log in: ALTER ROLE ... LOGIN", name);
  if (!facts.allowed)
    return mq::format("database \"{}\" takes no connections: ALTER DATABASE ... ALLOW_CONNECTIONS", of_database);
  if (!facts.connect)
    return mq::format("role \"{}\" may not connect to database \"{}\": GRANT CONNECT ON DATABASE ... TO it", name,
                      of_database);
  if (facts.superuser) return {};
  if (facts.role_limit >= 0 && facts.role_connections + connecting >= facts.role_limit)
    return mq::format("role \"{}\" has a CONNECTION LIMIT of {}, and {} connections: ALTER ROLE ... CONNECTION LIMIT",
                      name, facts.role_limit, facts.role_connections);
  if (facts.limit >= 0 && facts.connections + connecting >= facts.limit)
    return mq::format(
        "database \"{}\" has a CONNECTION LIMIT of {}, and {} connections: ALTER DATABASE ... CONNECTION LIMIT",
        of_database, facts.limit, facts.connections);
  return {};
}

void check_may_connect(Oid database, Oid role) {
  const Facts facts = guard::call([&] { return look(database, role); });
  if (facts.connect || !facts.role_exists) return;
  throw Error(
      "42501",
      mq::format("role \"{}\" may not connect to database \"{}\"", NameStr(facts.role), NameStr(facts.database)),
      "Workers connect as the role that the handler runs as. GRANT CONNECT ON DATABASE to it, or register the handler "
      "with another run_as.");
}

}  // namespace mq
