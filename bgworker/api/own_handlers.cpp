#include "api/own_handlers.hpp"

#include "api/admin.hpp"
#include "pg/error.hpp"
#include "pg/format.hpp"
#include "pg/handler_identity.hpp"

extern "C" {
#include "catalog/pg_type.h"
}

namespace mq {

void check_is_own(Oid caller, const Datum channel, const std::optional<Param>& message_name, const char* what) {
  static Statement handlers("SELECT r.oid, COALESCE(r.rolname::text, h.run_as)" WITH_ROLES(
                                "LEFT JOIN") " AND ($3 OR h.message_name IS NOT DISTINCT FROM $2)",
                            {TEXTOID, TEXTOID, BOOLOID});
  const Rows rows = handlers.run({channel, message_name.value_or(Param()), BoolGetDatum(!message_name)});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    bool null = false;
    const Datum role = rows.get(i, 1, null);
    if (!null && may_become(caller, DatumGetObjectId(role))) continue;
    if (is_admin(caller)) return;
    throw Error("42501", mq::format("must be a member of role \"{}\", which the handler runs as, or have the right "
                                    "\"admin\" to {}",
                                    text_view(rows.get(i, 2)), what));
  }
}

}  // namespace mq
