#include "shmem/row_claims.hpp"

#include "shmem/layout.hpp"

extern "C" {
#include "access/xact.h"
#include "miscadmin.h"
#include "storage/proc.h"
}

namespace mq::shared {

namespace {

constexpr int kMost = 1024;  // claims of one worker

// The claims of this worker: their places in the table.
std::uint16_t mine_at[kMost];
int mine_count = 0;
bool released_at_end = false;  // release_at_end() is registered

pg_atomic_uint64& released_count() {
  return state->row_claims_released[MyDatabaseId % kAudiences];
}

VirtualTransactionId mine() {
  VirtualTransactionId id;
  GET_VXID_FROM_PGPROC(id, *MyProc);
  return id;
}

bool is_mine(const RowClaimEntry& entry) {
  const VirtualTransactionId id = mine();
  return VirtualTransactionIdEquals(entry.holder, id);
}

// Fibonacci hashing: rows of a page and pages of a table go to different buckets.
std::size_t bucket_of(std::uint64_t row) {
  constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15;
  constexpr std::size_t kBuckets = kRowClaims / kRowClaimBucket;
  return ((row ^ std::uint64_t{MyDatabaseId} << 40) * kGolden >> 32) % kBuckets * kRowClaimBucket;
}

void release_at_end(XactEvent event, void*) {
  if (mine_count == 0 || (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)) return;
  const LightweightLock lock(state->row_claims_lock, LW_EXCLUSIVE);
  for (int i = 0; i < mine_count; ++i) state->row_claims[mine_at[i]] = {};
  pg_atomic_fetch_sub_u32(&state->row_claims_used, static_cast<int32>(mine_count));
  pg_atomic_fetch_add_u64(&released_count(), 1);
  mine_count = 0;
}

// Under the lock.
RowClaim claim(std::uint64_t row) {
  const std::size_t bucket = bucket_of(row);
  std::size_t free = kRowClaims;
  for (std::size_t i = bucket; i < bucket + kRowClaimBucket; ++i) {
    const RowClaimEntry& entry = state->row_claims[i];
    if (entry.database == MyDatabaseId && entry.row == row) return is_mine(entry) ? RowClaim::kMine : RowClaim::kOther;
    if (entry.database == InvalidOid && free == kRowClaims) free = i;
  }
  if (free == kRowClaims || mine_count == kMost) return RowClaim::kNoRoom;
  state->row_claims[free] = {row, mine(), MyDatabaseId};
  mine_at[mine_count++] = static_cast<std::uint16_t>(free);
  return RowClaim::kMine;
}

}  // namespace

std::uint64_t row_claims_released() {
  return pg_atomic_read_u64(&released_count());
}

std::uint64_t claim_rows(std::span<const std::uint64_t> rows, RowClaim* results) {
  if (!released_at_end) {
    RegisterXactCallback(release_at_end, nullptr);
    released_at_end = true;
  }
  const LightweightLock lock(state->row_claims_lock, LW_EXCLUSIVE);
  const int before = mine_count;
  for (std::size_t i = 0; i < rows.size(); ++i) results[i] = claim(rows[i]);
  pg_atomic_fetch_add_u32(&state->row_claims_used, static_cast<int32>(mine_count - before));
  return pg_atomic_read_u64(&released_count());
}

bool others_claim() {
  return available() && pg_atomic_read_u32(&state->row_claims_used) != static_cast<std::uint32_t>(mine_count);
}

namespace {

// The entry of another worker for the row; nullptr: there is none.
const RowClaimEntry* find_of_other(std::uint64_t row) {
  const std::size_t bucket = bucket_of(row);
  for (std::size_t i = bucket; i < bucket + kRowClaimBucket; ++i) {
    const RowClaimEntry& entry = state->row_claims[i];
    if (entry.row == row && entry.database == MyDatabaseId && !is_mine(entry)) return &entry;
  }
  return nullptr;
}

}  // namespace

bool seems_claimed_by_other(std::uint64_t row) {
  return others_claim() && find_of_other(row) != nullptr;
}

VirtualTransactionId claimed_by_other(std::uint64_t row) {
  VirtualTransactionId holder;
  SetInvalidVirtualTransactionId(holder);
  if (!others_claim()) return holder;
  const LightweightLock lock(state->row_claims_lock, LW_SHARED);
  if (const RowClaimEntry* entry = find_of_other(row)) holder = entry->holder;
  return holder;
}

std::vector<ClaimOfOther> claims_of_others() {
  std::vector<ClaimOfOther> claims;
  if (!others_claim()) return claims;
  claims.reserve(kRowClaims);
  const LightweightLock lock(state->row_claims_lock, LW_SHARED);
  for (const RowClaimEntry& entry : state->row_claims)
    if (entry.database == MyDatabaseId && !is_mine(entry)) claims.push_back({entry.row, entry.holder});
  return claims;
}

}  // namespace mq::shared
