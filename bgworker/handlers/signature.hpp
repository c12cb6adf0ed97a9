// Signatures: mq_handlers names a function as mq_register_handler wrote it, schema.name(type).
// FmgrCaller and the SQL functions of api/handlers.cpp look functions up by it. Stateless.
#pragma once

#include <string_view>

#include "pg/postgres.hpp"

namespace mq {

// The function or procedure; InvalidOid if there is none. Of the argument type only the name counts
// (jsonb, mq_message or mq_message[]), not its schema: so the extension's schema may be renamed.
// Needs a transaction. Throws 42704 if the type is needed and there is no mq_message.
Oid function_of(std::string_view signature);

}  // namespace mq
