// Crash points: steps at which the suite `crash` has a process end, to see that nothing is lost or done twice.
//
// Only `make CRASH_POINTS=1` builds them in. In any other build MQ_CRASH_POINT(name) is nothing: no code, no name in
// the library. tests/crash/crash.py reads the list below, and fails if a point is never passed.
//
// A point is passed by C++ code outside of guard::call. It is armed by a line of the file mq_crash_points in the data
// directory, which all processes of the server read at each point:
//
//   <point> kill|term|error worker|client|any <n>
//
//   kill    SIGKILL: the server ends all processes and recovers
//   term    SIGTERM from another process: this one ends at its next CHECK_FOR_INTERRUPTS()
//   error   throws an Error, as if the server could not read a file
//   worker  in background workers only; client: in sessions only
//   n       at the nth pass of all such processes together. Each pass adds a byte to mq_crash_points.<point>, which
//           outlives a crash, so the point is armed for one pass
//
// Who ends adds a line to mq_crash_points.fired: <point> <pid>.
#pragma once

// X(point, the processes that pass it in the suite, the ways in which they can end there)
// A point where nothing may throw any more has no `error`.
// clang-format off
#define MQ_CRASH_POINT_LIST(X)                                                          \
  /* send: queue/sender.cpp */                                                          \
  X(send_begins, "client worker", "kill term error")                                    \
  X(send_reserved, "client worker", "kill term error")                                  \
  X(send_linked, "client worker", "kill term error")                                    \
  X(send_inserted, "client worker", "kill term error")                                  \
  X(send_announced, "client worker", "kill term error")                                 \
  X(send_once_inserted, "client", "kill term error")                                    \
  /* what happens at COMMIT: queue/commit_actions.cpp */                                \
  X(commit_begins, "client worker", "kill term error")                                  \
  X(commit_linked, "client", "kill term error")                                         \
  X(commit_ready, "client worker", "kill term error")                                   \
  X(commit_done, "client worker", "kill term")                                          \
  X(commit_counted, "client worker", "kill term")                                       \
  X(commit_lowered, "client worker", "kill term")                                       \
  X(commit_woken, "client worker", "kill term")                                         \
  X(abort_begins, "client", "kill term")                                                \
  X(prepare_begins, "client", "kill term error")                                        \
  X(prepare_noted, "client", "kill term error")                                         \
  /* claim: queue/claim.cpp, worker/batch.cpp */                                        \
  X(claim_begins, "worker client", "kill term error")                                   \
  X(claim_taken, "worker client", "kill term error")                                    \
  X(claim_limited, "worker client", "kill term error")                                  \
  X(batch_claimed, "worker", "kill term error")                                         \
  /* dispatch: worker/dispatch.cpp, handlers/call.cpp */                                \
  X(dispatch_begins, "worker", "kill term error")                                       \
  X(dispatch_granted, "worker", "kill term error")                                      \
  X(call_noted, "worker", "kill term")                                                  \
  X(dispatch_called, "worker", "kill term error")                                       \
  X(dispatch_failed, "worker", "kill term")                                             \
  X(dispatch_undone, "worker", "kill term")                                             \
  X(dispatch_releases, "worker", "kill term error")                                     \
  X(dispatch_released, "worker", "kill term error")                                     \
  /* settle: queue/settle.cpp, worker/batch.cpp */                                      \
  X(settle_begins, "worker client", "kill term error")                                  \
  X(settle_recorded, "worker client", "kill term error")                                \
  X(settle_retried, "worker client", "kill term error")                                 \
  X(settle_snoozed, "worker", "kill term error")                                        \
  X(settle_dead, "worker", "kill term error")                                           \
  X(settle_dead_removed, "worker", "kill term error")                                   \
  X(settle_kept, "worker", "kill term error")                                           \
  X(settle_removed, "worker client", "kill term error")                                 \
  X(settle_counted, "worker client", "kill term error")                                 \
  X(batch_commits, "worker", "kill term error")                                         \
  X(batch_committed, "worker", "kill term")                                             \
  /* leases of leased calls: leased/begin.cpp, executor.cpp */                          \
  X(lease_claimed, "worker", "kill term error")                                         \
  X(lease_entered, "worker", "kill term error")                                         \
  X(lease_written, "worker", "kill term error")                                         \
  X(lease_committed, "worker", "kill term")                                             \
  X(lease_running, "worker", "kill term")                                               \
  X(lease_ended, "worker", "kill term")                                                 \
  X(lease_reclaimed, "worker", "kill term error")                                       \
  X(lease_settled, "worker", "kill term error")                                         \
  X(lease_done, "worker", "kill term")                                                  \
  X(lease_left, "worker", "kill term")                                                  \
  /* mq_receive, mq_ack, mq_nack: api/receiving.cpp */                                  \
  X(receive_claimed, "client", "kill term error")                                       \
  X(receive_leased, "client", "kill term error")                                        \
  X(receive_found, "client", "kill term error")                                         \
  X(receive_sleeps, "client", "kill term error")                                        \
  X(receive_woken, "client", "kill term error")                                         \
  X(ack_found, "client", "kill term error")                                             \
  X(ack_settled, "client", "kill term error")                                           \
  X(nack_settled, "client", "kill term error")                                          \
  /* mq_wait: api/waiting.cpp */                                                        \
  X(wait_watches, "client", "kill term error")                                          \
  X(wait_sleeps, "client", "kill term error")                                           \
  X(wait_woken, "client", "kill term error")                                            \
  X(wait_ended, "client", "kill term error")                                            \
  /* schedules: queue/timetable.cpp, worker/server_host.cpp */                          \
  X(schedule_locked, "worker", "kill term error")                                       \
  X(schedule_planned, "worker", "kill term error")                                      \
  X(schedule_sent, "worker", "kill term error")                                         \
  X(schedule_moved, "worker", "kill term error")                                        \
  X(schedule_commits, "worker", "kill term error")                                      \
  X(schedule_committed, "worker", "kill term error")                                    \
  /* limits: queue/channel_slots.cpp, running.cpp, rates.cpp, pending_limit.cpp */      \
  X(slot_locked, "worker client", "kill term error")                                    \
  X(slot_taken, "worker client", "kill term error")                                     \
  X(slot_released, "client", "kill term error")                                         \
  X(running_added, "worker client", "kill term error")                                  \
  X(running_granted, "worker client", "kill term error")                                \
  X(running_ends, "worker client", "kill term")                                         \
  X(running_returned, "worker client", "kill term")                                     \
  X(rate_taken, "worker", "kill term error")                                            \
  X(pending_reserved, "client", "kill term error")
// clang-format on

#ifdef MQ_CRASH_POINTS

namespace mq::crash_point {

enum class Point {
#define X(point, processes, ways) point,
  MQ_CRASH_POINT_LIST(X)
#undef X
};

// Ends this process if the point is armed for it and for this pass.
void passed(Point point);

}  // namespace mq::crash_point

#define MQ_CRASH_POINT(point) ::mq::crash_point::passed(::mq::crash_point::Point::point)
#define MQ_CRASH_POINT_IF(condition, point) ((condition) ? MQ_CRASH_POINT(point) : (void)0)

#else

#define MQ_CRASH_POINT(point) ((void)0)
#define MQ_CRASH_POINT_IF(condition, point) ((void)0)

#endif
