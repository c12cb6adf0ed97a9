#include "api/admin.hpp"

#include "pg/extension.hpp"
#include "pg/own_function.hpp"
#include "pg/statement.hpp"

namespace mq {

bool is_admin(Oid role) {
  static Statement may_grant(
      "SELECT 1 FROM pg_catalog.pg_proc p WHERE p.pronamespace = $1 AND p.proname = 'mq_grant'"
      "   AND pg_catalog.has_function_privilege($2, p.oid, 'EXECUTE') AND " MQ_IS_OWN_FUNCTION("p"),
      {OIDOID, OIDOID});
  return !may_grant.run({ObjectIdGetDatum(Extension::get().schema()), ObjectIdGetDatum(role)}).empty();
}

}  // namespace mq
