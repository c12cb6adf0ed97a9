// Signatures: the function that a registration names, as mq_register_handler wrote it: schema.name(type).
#pragma once

#include <string_view>

#include "postgres.hpp"

namespace mq {

// The function or procedure; InvalidOid where there is none. Its own name and schema count, and of the argument whether
// it is jsonb, mq_message or mq_message[]: so the extension's schema may be renamed. Needs a transaction.
Oid function_of(std::string_view signature);

}  // namespace mq
