// When the next schedule of a database is due: one worker reads it in the timetable, all know it. The lock
// of layout.hpp covers it; next_schedule() and Firing read a field without.
//
//   unknown   after a start of the server, and after any commit that changes schedules. The next worker
//             that asks reads the timetable
//   firing    a worker sends what is due. Others leave that to it, and wait for no time meanwhile. A worker
//             that ends before it is done makes the moment unknown
//   known     of the workers that wait one keeps time: it sleeps until then at most. One that is woken for
//             something else keeps it no more, and takes it up again when it waits. If that takes long, the
//             launcher wakes another (pass_time_on())
#pragma once

#include <cstdint>

#include "pg/postgres.hpp"

namespace mq::shared {

// A transaction that changed schedules of the database has committed. The caller wakes workers.
void schedules_changed(Oid database);

// From a worker, of its database. When the next schedule is due: 0 if that is not known, DT_NOEND if there is none.
TimestampTz next_schedule();

// Lives while this worker reads the timetable and sends what is due.
class Firing {
 public:
  Firing();
  ~Firing();  // what done() was not called for is unknown
  Firing(const Firing&) = delete;
  Firing& operator=(const Firing&) = delete;
  // False: another worker does it.
  bool is_mine() const { return mine_; }
  // The next one is due at `next`; 0: that is not known, and the next look reads it. Ignored if schedules have changed
  // since the beginning.
  void done(TimestampTz next);

 private:
  bool mine_ = false;
  std::uint64_t changes_ = 0;
};

// This worker waits (begin_wait()). Until when at most, if it is to keep time; DT_NOEND: it is not.
TimestampTz keep_time();

// From the launcher: where nobody keeps time, nor will soon, wakes a worker that waits.
void pass_time_on();

}  // namespace mq::shared
