// Empty tables: tables that are nearly always empty, which a batch looks at all the same. No state.
#pragma once

#include "pg/postgres.hpp"

namespace mq {

// Whether the table has no block, as it is when it is empty and VACUUM has cut it off. Costs no
// snapshot and no statement.
bool has_no_block(Oid table);

}  // namespace mq
