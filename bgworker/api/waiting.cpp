// mq_status and mq_wait: in which state messages are, and a wait until they have ended. Sessions call them
// through mq.c; a transactional handler may not call mq_wait. The file owns no state; queue/status.cpp finds the
// states, docs/internals/waits.md has the races.

#include "api/waiting.hpp"

#include <algorithm>
#include <unordered_set>

#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/client_wait.hpp"
#include "pg/crash_point.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/result_set.hpp"
#include "pg/session.hpp"
#include "pg/statement.hpp"
#include "queue/current_call.hpp"
#include "queue/status.hpp"

extern "C" {
#include "access/xact.h"
#include "access/xlog.h"
#include "utils/snapmgr.h"
}

namespace mq {

namespace {

// How soon a session looks again that no commit wakes: without shared memory, without room in it, on a standby.
constexpr Micros kPollInterval = kSecond / 10;
// Something may have removed a message and woken nobody, a subscription for instance.
constexpr Micros kLongestSleep = 60 * kSecond;
constexpr std::size_t kAtOnce = 100;

}  // namespace

// Drops messages that have ended from the end of `left`, and looks at no more than it has to, so many at a time.
// True: some are left, and the last one is pending.
bool Wait::drop_ended(std::vector<Uuid>& left, std::size_t at_once) const {
  while (!left.empty()) {
    const std::size_t from = left.size() - std::min(left.size(), at_once);
    const std::vector<char> pending = look_(std::span(left).subspan(from));
    std::size_t kept = from;
    for (std::size_t i = from; i < left.size(); ++i)
      if (pending[i - from] != 0) left[kept++] = left[i];
    left.resize(kept);
    if (kept > from) return true;
  }
  return false;
}

bool Wait::until_ended(std::span<const Uuid> messages) {
  std::vector<Uuid> left;
  std::unordered_set<Uuid, UuidHash> seen;
  for (const Uuid& id : messages)
    if (seen.insert(id).second) left.push_back(id);
  std::size_t looks = 0;  // the first is at all: some may be refused
  bool watches = false;
  Uuid watched;
  for (;;) {
    waiter_.begin_look();
    const bool over = is_over();  // before the look, so that one comes at the end
    if (!drop_ended(left, looks++ == 0 ? left.size() : kAtOnce)) return true;
    if (over) return false;
    const bool wakes = !guard::call([] { return RecoveryInProgress(); });
    if (wakes && !(watches && watched == left.back())) {
      watched = left.back();
      watches = waiter_.watch(watched);
      MQ_CRASH_POINT_IF(watches, wait_watches);
      if (watches) continue;
    }
    const bool polls = !(wakes && watches);
    if (!polls && !waiter_.may_sleep()) continue;
    guard::call([] { InvalidateCatalogSnapshot(); });
    MQ_CRASH_POINT(wait_sleeps);
    sleep_on_latch(std::min(end_ - clock_.steady(), polls ? kPollInterval : kLongestSleep), WaitFor::kMessages);
    MQ_CRASH_POINT(wait_woken);
    Extension::look_again();
  }
}

namespace {

std::vector<Uuid> ids_of(const Value& array) {
  std::vector<Uuid> ids;
  for (const Datum datum : elements(array, "ids")) ids.push_back(uuid_of(datum));
  return ids;
}

void add(const std::vector<MessageStatus>& statuses, ResultSet& result) {
  const auto number = [](const auto& value) { return value ? Param(Int32GetDatum(*value)) : Param(); };
  for (const MessageStatus& status : statuses)
    result.add({uuid_datum(status.id), text_datum(name_of(status.state)), number(status.attempt),
                number(status.attempts_left), status.due_at,
                status.fraction ? Param(Float4GetDatum(*status.fraction)) : Param(),
                status.note ? Param(text_datum(*status.note)) : Param(), status.result, status.error});
}

// Adds a row for each message; `only_ended`: if all have ended. Returns whether it did.
bool add_statuses(const std::vector<Uuid>& ids, bool only_ended, ResultSet& result) {
  const OwnerScope scope;
  const SpiConnection spi;
  const std::vector<MessageStatus> statuses = statuses_of(ids);
  const bool ended = std::all_of(statuses.begin(), statuses.end(),
                                 [](const MessageStatus& status) { return has_ended(status.state); });
  if (only_ended && !ended) return false;
  add(statuses, result);
  return true;
}

// Runs the body under a savepoint, and rolls it back unless the body returns true: with it go the locks on tables.
template <class Body>
bool under_savepoint(SavepointOnly& session, Body&& body) {
  session.set_savepoint();
  bool keeps = false;
  try {
    keeps = body();
  } catch (...) {
    session.rollback_to_savepoint();
    throw;
  }
  if (keeps)
    (void)session.release_savepoint();
  else
    session.rollback_to_savepoint();
  return keeps;
}

void wait(const std::vector<Uuid>& ids, Micros timeout, ResultSet& result) {
  SavepointOnly session;
  Wait wait(timeout, [&](std::span<const Uuid> messages) {
    std::vector<char> pending;
    under_savepoint(session, [&] {
      const OwnerScope scope;
      const SpiConnection spi;
      pending = are_pending(messages);
      return false;
    });
    return pending;
  });
  // Between two looks a message may have been sent again.
  for (;;) {
    const bool ended = wait.until_ended(ids);
    MQ_CRASH_POINT(wait_ended);
    if (under_savepoint(session, [&] { return add_statuses(ids, ended && !wait.is_over(), result); })) return;
  }
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_status_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    const std::vector<mq::Uuid> ids = mq::ids_of(mq::argument(fcinfo, 0));
    mq::ResultSet result(fcinfo);
    if (!ids.empty()) (void)mq::add_statuses(ids, false, result);
    return Datum{0};
  });
}

extern "C" Datum mq_wait_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_in_handler("mq_wait");
    const std::vector<mq::Uuid> ids = mq::ids_of(mq::argument(fcinfo, 0));
    const mq::Micros timeout = mq::interval_of(mq::argument(fcinfo, 1), "timeout", GetCurrentTimestamp());
    if (timeout > 0 && IsolationUsesXactSnapshot())
      throw mq::Error("25001", "mq_wait() cannot wait in a REPEATABLE READ or SERIALIZABLE transaction",
                      "It would go on with the snapshot from before the wait.", "Use READ COMMITTED, or no timeout.");
    mq::ResultSet result(fcinfo);
    if (!ids.empty()) mq::wait(ids, timeout, result);
    return Datum{0};
  });
}
