#include "shmem/keyed_names.hpp"

#include "shmem/layout.hpp"

namespace mq::shared {

namespace {

constexpr std::uint64_t kStateBits = 3;

pg_atomic_uint64& entry_of(std::uint64_t key) {
  return state->keyed_names[(key >> 2) % kKeyedNames];
}

}  // namespace

KeyedName::KeyedName(std::uint64_t key) : key_(key & ~kStateBits) {
  if (!available()) return;
  seen_ = pg_atomic_read_u64(&entry_of(key_));
  if ((seen_ & ~kStateBits) == key_) state_ = static_cast<State>(seen_ & kStateBits);
}

void KeyedName::set_keyed() {
  if (available()) pg_atomic_write_u64(&entry_of(key_), key_ | kKeyed);
}

void KeyedName::set_plain() {
  if (available()) (void)pg_atomic_compare_exchange_u64(&entry_of(key_), &seen_, key_ | kPlain);
}

}  // namespace mq::shared
