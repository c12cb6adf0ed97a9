// Callers: the processes that call transactional handlers, and what each is at: workers, and sessions in
// CALL mq_run. handlers/call.cpp notes the calls, settle.cpp the settling, mq_cancel reads both, and the
// views read what handlers say of their progress.
//
// A caller writes the fields of its call without the lock, since it does for each call, in this order:
//   a call begins   writes the message, then in_call; a memory barrier; then reads what was cancelled
//   mq_cancel       writes what is cancelled; a memory barrier; then reads in_call and the message
// So at least one of them sees the other. With `settling` and the open cancels it is the same
// (cancels.hpp). The lock covers the rest.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "pg/postgres.hpp"
#include "pg/types.hpp"

namespace mq::shared {

inline constexpr std::size_t kNoteBytes = 500;  // of mq_progress(note)

// This process calls handlers from now on: a worker, or an mq_run. `atomic`: its transaction is its
// user's. Where there is no room for another mq_run it goes on without an entry: mq_cancel waits for
// its transactions then, and its progress is shown nowhere.
void join_callers(bool atomic);
void leave_callers();

// A call with that many messages begins, and ends. Without shared memory they do nothing.
void begin_call(std::string_view channel_name, const Uuid& first, int messages);
void end_call();

// Whether this process is a caller whose transactions mq itself ends.
bool calls_handlers();

// This process settles messages in this transaction.
void note_settling_in(TransactionId transaction);

enum class Holder {
  kStranger,  // no caller: it ends its transaction when it likes
  kCalls,     // a caller whose transaction has not begun to settle
  kSettles,   // a caller that settles in this transaction, or has
};
// What a process is that has locked a row in the transaction.
Holder holder(int pid, TransactionId transaction);

// The call that this process runs is cancelled, and has been told so. A signal handler may call it.
void note_cancelled_call();
// How many signals cancels have sent to this process. A signal handler may call it.
std::uint32_t signals_sent();

}  // namespace mq::shared
