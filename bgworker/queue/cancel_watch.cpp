#include "queue/cancel_watch.hpp"

#include "entries.h"
#include "shmem/callers.hpp"
#include "shmem/cancels.hpp"

extern "C" {
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
}

namespace mq {

namespace {

// The call that is watched. `watching` is set last and cleared first.
const Claimed* const* volatile watched = nullptr;
volatile std::size_t watched_count = 0;
volatile int watched_lease = -1;
volatile sig_atomic_t watching = false;
volatile sig_atomic_t was_hit = false;
std::uint64_t claimed_at = 0;              // the count of cancelled messages at begin_claim()
volatile std::uint64_t looked_up_to = 0;   // the signal handler and look() have looked at those before
volatile std::uint32_t signals_taken = 0;  // of shared::signals_sent()

bool concerned(std::uint64_t from, std::uint64_t to) {
  if (watched_lease >= 0) return shared::lease_was_cancelled(watched_lease);
  for (std::size_t i = 0; i < watched_count; ++i)
    if (shared::is_cancelled(from, to, watched[i]->id, watched[i]->seq)) return true;
  return false;
}

// Also called by the signal handler.
void look() {
  const std::uint64_t count = shared::cancelled_count();
  if (concerned(looked_up_to, count)) was_hit = true;
  looked_up_to = count;
}

}  // namespace

CancelWatch::CancelWatch(std::span<const Claimed* const> messages) : messages_(messages) {
  was_hit = false;
  watched = messages.data();
  watched_count = messages.size();
  watched_lease = -1;
  looked_up_to = claimed_at;
  watching = true;
  if (shared::cancelled_count() != claimed_at) look();
}

CancelWatch::CancelWatch(int leased_call) {
  was_hit = false;
  watched_count = 0;
  watched_lease = leased_call;
  watching = leased_call >= 0;
}

CancelWatch::~CancelWatch() {
  (void)end();
}

bool CancelWatch::is_hit() {
  return was_hit;
}

bool CancelWatch::end() {
  watching = false;
  if (was_hit) QueryCancelPending = false;
  return was_hit;
}

std::vector<Uuid> CancelWatch::cancelled() const {
  std::vector<Uuid> ids;
  const std::uint64_t count = shared::cancelled_count();
  for (const Claimed* message : messages_)
    if (shared::is_cancelled(claimed_at, count, message->id, message->seq)) ids.push_back(message->id);
  return ids;
}

void CancelWatch::begin_claim() {
  claimed_at = shared::cancelled_count();
}

void CancelWatch::catch_signals() {
  signals_taken = shared::signals_sent();
  pqsignal(SIGINT, mq_cancel_signal);
}

void CancelWatch::release_signals() {
  // A system call lets a signal in that was sent before leave_callers().
  (void)getppid();
  pqsignal(SIGINT, StatementCancelHandler);
}

}  // namespace mq

// True: the signal was sent by mq_cancel.
extern "C" bool mq_take_cancel(void) {
  using namespace mq;
  const std::uint32_t sent = shared::signals_sent();
  if (sent == signals_taken) return false;
  signals_taken = sent;
  if (!watching) return true;
  look();
  if (!was_hit) return true;
  shared::note_cancelled_call();
  InterruptPending = true;
  QueryCancelPending = true;
  SetLatch(MyLatch);
  return true;
}
