// Whose handlers a channel has: the right `develop` is about one's own. The functions that register handlers, and
// that pause or limit channels, ask. No state.
#pragma once

#include <optional>

#include "pg/statement.hpp"

namespace mq {

// The handlers of channel name $1, with the roles that they run as.
#define WITH_ROLES(join)                                                                                     \
  " FROM $S.mq_handlers h LEFT JOIN $S.mq_enabled m ON m.id = h.enabled_id " join                            \
  " pg_catalog.pg_roles r ON CASE WHEN m.id IS NULL THEN r.rolname = h.run_as ELSE r.oid = h.run_as_oid END" \
  " WHERE h.channel_name = $1"

// Throws 42501 unless the caller is a member of the roles that the handlers of the channel name run as, or may
// call mq_grant(): the right `develop` is about one's own handlers only. `message_name`: only that of this name
// (a null Param: of every other name); none: all of the channel name.
// Needs an OwnerScope and an SPI connection.
void check_is_own(Oid caller, Datum channel, const std::optional<Param>& message_name, const char* what);

}  // namespace mq
