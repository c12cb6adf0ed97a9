// Timetable: the table of schedules. Workers and CALL mq_run send what is due; mq_schedule writes the rows.
// No state.
//
// A row is due when its next_at has come, or, after a failure, its retry_at. The transaction that sends its
// message moves next_at on, under the lock of the row: so each time is sent once, whoever is there, and what a
// crash rolls back is due again. A schedule that fails does not stop others: it keeps its time, has its error
// in its row, and is tried again later.
//
// All functions need a transaction; those with `now` in µs.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/transaction.hpp"
#include "pg/types.hpp"

namespace mq::timetable {

// Throws 42501 if the role may not call mq_send.
void check_may_send(Oid role);

// The first look. Costs no snapshot and no statement, and waits for no lock.
enum class Look {
  kEmpty,   // there is certainly no schedule
  kLocked,  // another session has locked the table, and would have to be waited for
  kSome,
};
Look look();

struct Sent {
  bool messages = false;  // some were sent
  bool more = false;      // more may be due
};
// Sends what is due: one bounded step. `only`: of these channel names alone. `thorough`: looks for a clock that
// was set back and for roles that were renamed, too. Not in an OwnerScope, since it runs deferred triggers. Throws only
// class 57 (cancel, shutdown), and what writing its own table raises.
Sent send_due(Transaction& transaction, Micros now, bool thorough, const std::vector<std::string_view>* only);

// When the next schedule is due; kNever: there is none. What other sessions hold locked is looked at again
// soon, and the less often the longer it has been due.
Micros next(Micros now);

}  // namespace mq::timetable
