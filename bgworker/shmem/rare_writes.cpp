#include "shmem/rare_writes.hpp"

#include "shmem/layout.hpp"

namespace mq::shared {

void rare_write(Rare what) {
  if (available()) pg_atomic_fetch_add_u64(&state->rare_writes[static_cast<int>(what)], 1);  // a memory barrier
}

std::optional<std::uint64_t> SeenEmpty::writes() const {
  if (!available()) return std::nullopt;
  pg_memory_barrier();
  return pg_atomic_read_u64(&state->rare_writes[static_cast<int>(what_)]);
}

}  // namespace mq::shared
