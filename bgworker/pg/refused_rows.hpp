// Refused rows: a BEFORE trigger that returns NULL, a rule that does something else instead, or a
// policy of row security may keep rows of mq's tables as they are, or keep them out. The statement
// then succeeds and has changed fewer rows than it should. To go on would be to handle a message
// again and again, or to lose it. So code that writes rows counts them, and throws refused(). It
// looks into the catalogs only where the count is short. No state.
#pragma once

#include "pg/error.hpp"
#include "pg/postgres.hpp"

namespace mq {

// Whether the table has a trigger, a rule or row security.
bool may_refuse(Oid table);

// The error: 27000. `what` rows are kept from: "being added", "being changed", "being removed".
Error refused(const char* table, const char* what);

}  // namespace mq
