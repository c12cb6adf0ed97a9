// New ids of messages. The only state is this process's: the last id, and random bytes in store.
#pragma once

#include "pg/types.hpp"

namespace mq {

// An id for a message: a uuid of version 7. Those of a session ascend within a millisecond.
Uuid new_id();

}  // namespace mq
