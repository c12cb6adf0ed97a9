// Rows of our tables that others keep as they are, or keep out: by a BEFORE trigger that returns NULL, a rule that does
// something else instead, or a policy. The statement succeeds and has changed fewer rows than it should. To go on would
// be to handle a message again and again, or to lose it.
//
// Nothing is asked where the counts are as they should be.
#pragma once

#include "../error.hpp"
#include "postgres.hpp"

namespace mq {

// Whether the table has anything of that kind.
bool may_refuse(Oid table);

// 27000. `what` the rows are kept from: "being added", "being changed", "being removed".
Error refused(const char* table, const char* what);

}  // namespace mq
