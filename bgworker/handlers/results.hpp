// Results: what handlers return for their messages, if that is jsonb and a message is kept (mq_done). The
// transactional calls (call.cpp) and the leased ones (leased/lease_store.cpp) use it. No state.
#pragma once

#include <span>
#include <vector>

#include "handlers/registry.hpp"
#include "pg/postgres.hpp"
#include "queue/message.hpp"

namespace mq {

// Whether the function returns jsonb, or a domain over it.
bool returns_json(Oid function);

// Whether the result of a call with these messages is wanted.
bool wants_result(const Handler& handler, std::span<const Claimed* const> messages);

// A copy of the jsonb that lives to the end of the transaction. For bodies of guard::call().
Datum result_to_keep(Datum jsonb);

// The result of each message. Throws 22023 where a batch handler has not returned an array with an element for
// each. `jsonb` is a copy as above.
std::vector<const void*> results_of(Datum jsonb, Shape shape, std::size_t messages);

}  // namespace mq
