#include "shared.hpp"

#include <algorithm>
#include <array>

#include "../channel_key.hpp"
#include "../pool.hpp"
#include "entries.h"
#include "inflight.hpp"
#include "settings.h"
#include "shared_state.hpp"

extern "C" {
#include "mb/pg_wchar.h"
#include "storage/procarray.h"
#include "storage/shmem.h"
}

namespace mq::shared {

State* state = nullptr;
int my_seat = -1;

namespace {

Seat& mine() {
  return state->seats[my_seat];
}

Audience& audience() {
  return state->audiences[MyDatabaseId % kAudiences];
}

// Under the lock.
void note_free(std::uint64_t seen, TimestampTz due) {
  Pool* pool = find_pool(mine().database, mine().role);
  if (pool == nullptr) return;
  pool->seen = seen;
  pool->due = due;
}

}  // namespace

bool available() {
  return state != nullptr;
}

void add_lost(const inflight::Mark& mark, Loss loss) {
  auto* end = state->lost + kCasualties;
  auto* free = std::find_if(state->lost, end, [](const Lost& l) { return l.mark.database == InvalidOid; });
  if (free == end) return;
  *free = {mark, loss, GetCurrentTimestamp(), 0};
  ++state->lost_calls;
}

void forget_lost(const std::vector<Oid>& existing) {
  const TimestampTz now = GetCurrentTimestamp();
  for (Lost& lost : state->lost) {
    if (lost.mark.database == InvalidOid) continue;
    if (std::find(existing.begin(), existing.end(), lost.mark.database) != existing.end() && now - lost.at < kLostFor)
      continue;
    lost.mark.database = InvalidOid;
    --state->lost_calls;
  }
}

void announce_database(Oid database) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  if (Database* d = find_or_add_database(database)) {
    d->look = true;
    d->closed_until = 0;
    ++d->announcements;
    ++d->wakes;
  } else {
    state->no_room = state->look_around = true;
  }
  wake_all_of(database);
  wake_launcher();
}

void wake_workers(Oid database) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(database);
  if (d == nullptr) return;
  ++d->wakes;
  Oid woken[kSeats];
  int count = 0;
  bool served = false;  // busy workers look again before they rest
  for (Seat& seat : used_seats()) {
    served = served || seat.database == database;
    if (seat.database != database || !seat.waiting) continue;
    if (std::find(woken, woken + count, seat.role) != woken + count) continue;
    woken[count++] = seat.role;
    SetLatch(&seat.worker->procLatch);
  }
  if (d->contended || d->tight || !served || state->short_of_slots) wake_launcher_soon();
}

void wake_or_announce(Oid database) {
  if (!available()) return;
  bool known = false;
  {
    Guard guard(LW_SHARED);
    const Database* d = find_database(database);
    known = d != nullptr && d->installed;
  }
  known ? wake_workers(database) : announce_database(database);
}

void add_listener() {
  pg_atomic_fetch_add_u32(&audience().listeners, 1);
}

void remove_listener() {
  pg_atomic_fetch_sub_u32(&audience().listeners, 1);
}

// It counts itself before it looks, and a listener counts itself before it polls. Of the two at least one sees the
// other: atomic additions are memory barriers.
bool begin_quiet_commit() {
  if (!available()) return false;
  pg_atomic_fetch_add_u32(&audience().quiet_commits, 1);
  if (pg_atomic_read_u32(&audience().listeners) == 0) return true;
  end_quiet_commit();
  return false;
}

void end_quiet_commit() {
  pg_atomic_fetch_sub_u32(&audience().quiet_commits, 1);
}

bool quiet_commit_under_way() {
  if (!available()) return false;
  pg_memory_barrier();
  return pg_atomic_read_u32(&audience().quiet_commits) > 0;
}

void note_poll() {
  if (available()) pg_atomic_write_u64(&audience().polled_at, static_cast<uint64>(GetCurrentTimestamp()));
}

bool has_consumers() {
  if (!available()) return false;
  const auto polled = static_cast<TimestampTz>(pg_atomic_read_u64(&audience().polled_at));
  return pg_atomic_read_u32(&audience().listeners) > 0 ||
         (polled != 0 && GetCurrentTimestamp() - polled < kConsumersGone);
}

void close_database(Oid database) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  if (Database* d = find_database(database)) d->closed_until = GetCurrentTimestamp() + kClosedFor;
  wake_all_of(database);
}

void open_database(Oid database) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  if (Database* d = find_database(database)) d->closed_until = 0;
  wake_launcher();
}

std::vector<int> processes_in(Oid database) {
  std::vector<int> result;
  if (!available()) return result;
  result.reserve(kSeats + kLeases);
  Guard guard(LW_SHARED);
  for (const Seat& seat : used_seats())
    if (seat.database == database && seat.worker != nullptr) result.push_back(seat.worker->pid);
  for (const Lease& lease : used_leases())
    if (lease.token != 0 && lease.seat >= 0 && lease.database == database) result.push_back(lease.backend);
  return result;
}

void ask_to_give_way(int worker) {
  Guard guard(LW_EXCLUSIVE);
  for (Seat& seat : used_seats()) {
    if (seat.database == InvalidOid || seat.worker == nullptr || seat.worker->pid != worker) continue;
    seat.gives_way = true;
    (void)kill(worker, SIGINT);
  }
}

bool gave_way() {
  if (my_seat < 0) return false;
  Guard guard(LW_EXCLUSIVE);
  return std::exchange(mine().gives_way, false);
}

namespace {

// Under the lock.
bool has_leased_calls() {
  const std::span<Lease> leases = used_leases();
  return std::any_of(leases.begin(), leases.end(),
                     [](const Lease& lease) { return lease.token != 0 && lease.seat == my_seat; });
}

// This worker has settings that have changed, and nothing that keeps it beside another of its pool which waits for its
// leased calls to end. Under the lock.
bool can_renew() {
  const Seat& seat = mine();
  if (!seat.stale) return false;
  const std::span<Seat> seats = used_seats();
  const bool others_leave = std::any_of(seats.begin(), seats.end(), [&](const Seat& other) {
    return other.renew && &other != &seat && other.database == seat.database && other.role == seat.role;
  });
  return !others_leave || (!has_leased_calls() && seat.connecting == 0);
}

}  // namespace

void renew_workers(Oid database, Oid role) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  for (Seat& seat : used_seats()) {
    if (seat.database == InvalidOid || seat.worker == nullptr) continue;
    if ((database != InvalidOid && seat.database != database) || (role != InvalidOid && seat.role != role)) continue;
    seat.stale = true;
    SetLatch(&seat.worker->procLatch);
  }
}

// Without the lock as a rule: asked for each batch.
bool should_renew() {
  if (my_seat < 0 || !*const_cast<volatile bool*>(&mine().stale)) return false;
  Guard guard(LW_SHARED);
  return can_renew();
}

void give_place_up() {
  if (my_seat < 0) return;
  Guard guard(LW_EXCLUSIVE);
  mine().keeper = true;
  mine().renew = can_renew();
  wake_launcher();
}

bool has_place() {
  return my_seat >= 0 && !*const_cast<volatile bool*>(&mine().keeper);
}

void look_around() {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  state->look_around = true;
  wake_launcher();
}

bool take_look_around() {
  Guard guard(LW_EXCLUSIVE);
  return std::exchange(state->look_around, false);
}

Assignment take_seat(const Reservation& reservation) {
  Guard guard(LW_EXCLUSIVE);
  // The launcher that reserved it may have gone, and another given it away.
  Seat& s = state->seats[reservation.seat];
  if (s.database == InvalidOid || s.worker != nullptr || s.reservation != reservation.number)
    return {InvalidOid, InvalidOid};
  const Database* d = find_database(s.database);
  if (d == nullptr || (d->closed_until != 0 && GetCurrentTimestamp() < d->closed_until)) {
    s = Seat{};
    seats_freed();
    return {InvalidOid, InvalidOid};
  }
  my_seat = reservation.seat;
  s.worker = MyProc;
  s.waiting = false;
  s.since = GetCurrentTimestamp();
  return {s.database, s.role};
}

void open_marks() {
  inflight::open(my_seat, kSeats, kSeats + kLeases);
}

void leave_seat() {
  if (my_seat < 0) return;
  Guard guard(LW_EXCLUSIVE);
  if (Pool* pool = find_pool(mine().database, mine().role); pool != nullptr && !mine().served) ++pool->failed_starts;
  abandon_leases();
  forget_failures_of(my_seat);
  if (mine().renew)  // others wait for that, see can_renew
    for (const Seat& seat : used_seats())
      if (seat.stale && !seat.renew && seat.worker != nullptr && seat.database == mine().database &&
          seat.role == mine().role)
        SetLatch(&seat.worker->procLatch);
  mine() = Seat{};
  seats_freed();
  my_seat = -1;
  wake_launcher();
}

void publish_pools(bool installed, const std::vector<Oid>& roles) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(MyDatabaseId);
  if (d == nullptr) return;  // not served any more
  d->known = true;
  d->installed = installed;
  d->look = false;
  for (Pool& pool : used_pools()) {
    if (pool.database != MyDatabaseId) continue;
    if (std::find(roles.begin(), roles.end(), pool.role) == roles.end()) pool.database = InvalidOid;
  }
  pools_freed();
  for (const Oid role : roles) add_pool(MyDatabaseId, role);
  forget_failures_beyond_pools(MyDatabaseId);
  wake_launcher();
}

void set_backlog(bool backlog) {
  if (my_seat < 0) return;
  Guard guard(LW_EXCLUSIVE);
  Pool* pool = find_pool(mine().database, mine().role);
  if (pool == nullptr || pool->backlog == backlog) return;
  pool->backlog = backlog;
  if (!backlog) return;
  wake_launcher_soon();
  for (Seat& seat : used_seats())  // an idle one of the pool can help at once
    if (seat.database == mine().database && seat.role == mine().role && seat.waiting) SetLatch(&seat.worker->procLatch);
}

News news() {
  Guard guard(LW_SHARED);
  const Database* d = find_database(mine().database);
  return d != nullptr ? News{d->wakes, d->announcements} : News{0, 0};
}

// Without the lock: asked for each batch.
bool announced_since(std::uint64_t announcements) {
  if (my_seat < 0) return false;
  const Database* d = find_database(mine().database);
  return d != nullptr && *const_cast<const volatile std::uint64_t*>(&d->announcements) != announcements;
}

bool begin_wait(std::uint64_t seen, TimestampTz due) {
  Guard guard(LW_EXCLUSIVE);
  const Database* d = find_database(mine().database);
  if (d != nullptr && d->wakes != seen) return false;
  note_free(seen, due);
  if (!mine().waiting) mine().since = GetCurrentTimestamp();
  mine().waiting = true;
  return true;
}

void end_wait() {
  Guard guard(LW_EXCLUSIVE);
  mine().waiting = false;
}

bool is_closed() {
  if (my_seat < 0) return false;
  Guard guard(LW_SHARED);
  const Database* d = find_database(mine().database);
  return d == nullptr || (d->closed_until != 0 && GetCurrentTimestamp() < d->closed_until);
}

bool must_leave() {
  if (my_seat < 0) return false;
  Guard guard(LW_SHARED);
  const Database* d = find_database(mine().database);
  if (can_renew() || d == nullptr || (d->closed_until != 0 && GetCurrentTimestamp() < d->closed_until)) return true;
  if (d->known && find_pool(mine().database, mine().role) == nullptr) return true;
  // mq.max_workers was lowered: the first ones stay.
  const auto before = std::count_if(
      state->seats, &mine(), [](const Seat& seat) { return seat.database == mine().database && has_place(seat); });
  return before >= mq_max_workers;
}

// Without the lock: asked for each batch.
bool slots_are_wanted() {
  return *const_cast<volatile int*>(&state->slots_wanted) > 0;
}

bool give_up_slot(TimestampTz due, std::uint64_t seen) {
  if (!slots_are_wanted()) return false;
  Guard guard(LW_EXCLUSIVE);
  // A worker that waits for its leased calls would only block the slot.
  if (state->slots_wanted <= 0 || mine().gives_up || has_leased_calls()) return false;
  --state->slots_wanted;
  mine().gives_up = true;
  note_free(seen, due);
  return true;
}

Crowd crowd() {
  Guard guard(LW_SHARED);
  const Database* d = find_database(mine().database);
  if (d == nullptr || (OidIsValid(d->needy) && d->needy == mine().role)) return {false, false};
  return {d->contended, d->places_wanted > 0};
}

void end_turn(TimestampTz due, std::uint64_t seen, bool fruitless) {
  Guard guard(LW_EXCLUSIVE);
  note_free(seen, due);
  Pool* pool = find_pool(mine().database, mine().role);
  if (pool != nullptr && !fruitless) pool->fruitless = 0;
}

bool yield_place(TimestampTz due, std::uint64_t seen, bool fruitless) {
  Guard guard(LW_EXCLUSIVE);
  Database* d = find_database(mine().database);
  if (d == nullptr || d->places_wanted <= 0 || d->wakes != seen || mine().connecting > 0) return false;
  --d->places_wanted;
  mine().yields = true;
  note_free(seen, due);
  if (Pool* pool = find_pool(mine().database, mine().role)) {
    pool->fruitless = fruitless ? pool->fruitless + 1 : 0;
    pool->not_before = fruitless ? after_fruitless(pool->fruitless, GetCurrentTimestamp(), d->next_fruitless) : 0;
  }
  return true;
}

bool is_extra() {
  Guard guard(LW_SHARED);
  const std::span<Seat> seats = used_seats();
  return std::any_of(seats.begin(), seats.end(), [](const Seat& seat) {
    return &seat != &mine() && seat.database == mine().database && seat.role == mine().role && seat.waiting;
  });
}

void started_well() {
  Guard guard(LW_EXCLUSIVE);
  mine().served = true;
  if (Pool* pool = find_pool(mine().database, mine().role)) pool->failed_starts = 0;
}

void note_lost(Loss loss) {
  if (my_seat < 0 || inflight::current().database == InvalidOid) return;
  Guard guard(LW_EXCLUSIVE);
  add_lost(inflight::current(), loss);
}

namespace {

bool is_mine_to_charge(const Lost& lost) {
  return lost.mark.database == MyDatabaseId && lost.mark.role == MyProc->roleId &&
         (lost.charger == 0 || BackendPidGetProc(lost.charger) == nullptr);
}

}  // namespace

// Asked before each batch: without the lock where there is none at all.
bool any_casualty() {
  if (!available() || *const_cast<volatile int*>(&state->lost_calls) == 0) return false;
  Guard guard(LW_SHARED);
  return std::any_of(state->lost, state->lost + kCasualties, is_mine_to_charge);
}

std::vector<Casualty> take_casualties() {
  std::vector<Casualty> casualties;
  if (!available()) return casualties;
  casualties.reserve(kCasualties);
  Guard guard(LW_EXCLUSIVE);
  for (Lost& lost : state->lost) {
    if (!is_mine_to_charge(lost)) continue;
    lost.charger = MyProcPid;
    const int signal = lost.loss == Loss::kCrash ? lost.mark.end - inflight::kSignal : 0;
    casualties.push_back({lost.mark.message, lost.mark.messages, lost.loss, lost.mark.token, signal,
                          static_cast<int>(&lost - state->lost)});
  }
  return casualties;
}

void casualties_settled(const std::vector<int>& numbers) {
  if (!available()) return;
  Guard guard(LW_EXCLUSIVE);
  for (const int number : numbers) {
    if (state->lost[number].charger != MyProcPid || state->lost[number].mark.database == InvalidOid) continue;
    state->lost[number].mark.database = InvalidOid;
    --state->lost_calls;
  }
  for (Lost& lost : state->lost)
    if (lost.charger == MyProcPid) lost.charger = 0;
}

bool lease_is_lost(std::int64_t token) {
  if (!available() || *const_cast<volatile int*>(&state->lost_calls) == 0) return false;
  Guard guard(LW_SHARED);
  return std::any_of(state->lost, state->lost + kCasualties,
                     [&](const Lost& lost) { return lost.mark.token == token && lost.mark.database == MyDatabaseId; });
}

// Without the lock: what is shown may be torn for a moment, what it costs is paid for every message.
void note_call(std::string_view channel_name, const Uuid& message) {
  if (my_seat < 0) return;
  Seat& seat = mine();
  const auto bytes = static_cast<std::size_t>(
      pg_mbcliplen(channel_name.data(), static_cast<int>(channel_name.size()), kChannelBytes - 1));
  seat.since = GetCurrentTimestamp();
  memcpy(seat.channel_name, channel_name.data(), bytes);
  seat.channel_name[bytes] = 0;
  seat.message = message;
  seat.doing = Doing::kCall;
}

void note_returned() {
  if (my_seat >= 0) mine().doing = Doing::kBetween;
}

void note_settling(TimestampTz now) {
  if (my_seat < 0) return;
  mine().since = now;
  mine().doing = Doing::kSettling;
}

void note_committing() {
  if (my_seat >= 0) mine().doing = Doing::kCommitting;
}

void note_idle() {
  if (my_seat < 0) return;
  mine().doing = Doing::kBetween;
  mine().sits = false;
  mine().names_held = 0;
}

TimestampTz call_began() {
  return my_seat >= 0 ? mine().since : 0;
}

// Of the launcher nothing but its latch is touched: if it has gone, some other process wakes once for nothing.
void note_sits() {
  if (my_seat < 0 || mine().sits) return;
  mine().sits = true;
  wake_launcher_soon();
}

void note_handled(std::uint64_t messages) {
  if (my_seat >= 0) mine().handled += messages;
}

void note_batch(const Batch& messages) {
  if (my_seat < 0) return;
  Seat& seat = mine();
  seat.gives_way = false;
  seat.channel_name[0] = 0;
  int names = 0;
  std::string_view last;
  for (const Claimed& message : messages) {
    if (names == 0 || message.channel_name != last) {
      if (names == kNamesHeld) break;
      last = message.channel_name;
      seat.held[names++] = {channel_key(last, {}), 0};
    }
    ++seat.held[names - 1].messages;
  }
  seat.names_held = names;
}

std::map<std::int64_t, std::int64_t> held_by_workers() {
  std::map<std::int64_t, std::int64_t> result;
  if (!available()) return result;
  std::vector<std::array<Held, kNamesHeld>> held(kSeats);
  int names[kSeats];
  int seats = 0;  // that hold something
  {
    Guard guard(LW_SHARED);
    for (const Seat& seat : used_seats()) {
      if (seat.database != MyDatabaseId || seat.worker == nullptr || seat.names_held == 0) continue;
      names[seats] = seat.names_held;
      std::copy(seat.held, seat.held + names[seats], held[seats].begin());
      ++seats;
    }
  }
  for (int i = 0; i < seats; ++i)
    for (int k = 0; k < names[i]; ++k) result[held[i][k].name_key] += held[i][k].messages;
  return result;
}

std::vector<WorkerState> workers() {
  std::vector<WorkerState> result;
  if (!available()) return result;
  result.reserve(kSeats);
  Guard guard(LW_SHARED);
  for (const Seat& seat : used_seats())
    if (seat.database != InvalidOid && seat.worker != nullptr)
      result.push_back({seat.worker->pid, seat.database, seat.role, seat.waiting, !seat.keeper, seat.doing,
                        seat.channel_name, seat.message, seat.since, seat.handled});
  return result;
}

std::vector<KeeperState> keepers() {
  std::vector<KeeperState> result;
  if (!available()) return result;
  result.reserve(kSeats);
  Guard guard(LW_SHARED);
  for (const Seat& seat : used_seats()) {
    if (seat.database == InvalidOid || seat.worker == nullptr || !seat.keeper) continue;
    KeeperState keeper{seat.worker->pid, seat.database, seat.role, 0, 0};
    for (const Lease& lease : used_leases()) {
      if (lease.token == 0 || lease.seat != &seat - state->seats) continue;
      if (keeper.calls++ == 0 || lease.since < keeper.since) keeper.since = lease.since;
    }
    if (keeper.calls > 0) result.push_back(keeper);
  }
  return result;
}

ServiceState service() {
  if (!available()) return {};
  Guard guard(LW_SHARED);
  ServiceState result{};
  result.launcher = state->launcher != nullptr;
  result.served = find_database(MyDatabaseId) != nullptr;
  result.slots = state->slots;
  result.out_of_slots = result.slots.out_of_slots || result.slots.out_of_seats;
  result.beyond = !result.served && state->databases_beyond > 0;
  for (const Pool& pool : used_pools())
    if (pool.database == MyDatabaseId && pool.failed_starts > result.failed_starts) {
      result.failing_role = pool.role;
      result.failed_starts = pool.failed_starts;
    }
  return result;
}

std::vector<FailingPool> failing_pools() {
  std::vector<FailingPool> result;
  if (!available()) return result;
  result.reserve(state->pools.size());
  Guard guard(LW_SHARED);
  for (const Pool& pool : used_pools())
    if (pool.database == MyDatabaseId && pool.failed_starts > 0) {
      const Failure* end = last_end(MyDatabaseId, pool.role);
      result.push_back({pool.role, pool.failed_starts, end != nullptr ? end->text : ""});
    }
  return result;
}

}  // namespace mq::shared

namespace {

struct Layout {
  Size databases, pools, end;
};

Layout layout() {
  Layout at{};
  at.databases = MAXALIGN(sizeof(mq::shared::State));
  at.pools = at.databases + MAXALIGN(sizeof(mq::shared::Database) * static_cast<Size>(mq_max_databases));
  at.end = at.pools + MAXALIGN(sizeof(mq::shared::Pool) * static_cast<Size>(mq_max_databases + mq::shared::kMorePools));
  return at;
}

}  // namespace

extern "C" Size mq_shared_size(void) {
  return layout().end;
}

extern "C" int mq_shared_locks(void) {
  return 1 + mq::shared::kMarkLocks;
}

// In the postmaster, when it starts and after a crash.
extern "C" void mq_shared_startup(void) {
  using mq::shared::state;
  bool found = false;
  LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
  state = static_cast<mq::shared::State*>(ShmemInitStruct("mq", mq_shared_size(), &found));
  if (!found) {
    memset(static_cast<void*>(state), 0, mq_shared_size());
    char* base = reinterpret_cast<char*>(state);
    const auto databases = static_cast<std::size_t>(mq_max_databases);
    state->databases = {reinterpret_cast<mq::shared::Database*>(base + layout().databases), databases};
    state->pools = {reinterpret_cast<mq::shared::Pool*>(base + layout().pools), databases + mq::shared::kMorePools};
    LWLockPadded* locks = GetNamedLWLockTranche("mq");
    state->lock = &locks->lock;
    state->mark_locks = locks + 1;
    for (mq::shared::Audience& audience : state->audiences) {
      pg_atomic_init_u32(&audience.listeners, 0);
      pg_atomic_init_u32(&audience.quiet_commits, 0);
      pg_atomic_init_u64(&audience.polled_at, 0);
    }
    if (!pg_strong_random(&state->mark_seed, sizeof state->mark_seed)) state->mark_seed = GetCurrentTimestamp();
    // After a crash, in the same postmaster, a process that was not told to go is one that was killed. At a first start
    // (power was lost, the postmaster was killed, a stop was immediate) that proves nothing.
    static bool started = false;
    for (const mq::inflight::Mark& mark : mq::inflight::take_all(mq::shared::kSeats + mq::shared::kLeases)) {
      if (mark.end >= mq::inflight::kSignal)
        mq::shared::add_lost(mark, mq::Loss::kCrash);
      else if (mark.end == mq::inflight::kRunning && started)
        mq::shared::add_lost(mark, mq::Loss::kKilled);
    }
    started = true;
  }
  LWLockRelease(AddinShmemInitLock);
}
