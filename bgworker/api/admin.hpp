// Who may do what belongs to other roles. The SQL functions that register and remove things ask. No state.
#pragma once

#include "pg/postgres.hpp"

namespace mq {

// Whether the role has the right `admin`: it may call mq_grant(). Needs an OwnerScope and an SPI connection.
bool is_admin(Oid role);

}  // namespace mq
