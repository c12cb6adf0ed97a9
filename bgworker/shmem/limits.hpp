// Limits of channel names whose handlers conflict (throttle.hpp). Workers set them, and ask for them at
// each claim. State::lock covers the table `throttled`.
#pragma once

#include <cstdint>
#include <optional>

#include "pg/postgres.hpp"
#include "pg/types.hpp"
#include "shmem/throttle.hpp"

namespace mq::shared {

// Limits of a channel name after its handlers have conflicted (throttle.hpp). Cheap without any.
bool any_limits();  // in any database
std::optional<Limits> limits_of(std::int64_t name_key);
void note_conflict(std::int64_t name_key, Micros batch_began, int messages);
bool others_wait_for_locks();  // another worker of this database waits for a lock

}  // namespace mq::shared
