// mq_cancel: moves pending messages to the dead letters, and interrupts the calls that handle them. Sessions
// and handlers call it through mq.c. The file owns no state; queue/cancel.cpp does the work.

#include <algorithm>
#include <string>
#include <unordered_set>
#include <vector>

#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/kept.hpp"
#include "pg/locks.hpp"
#include "pg/result_set.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/cancel.hpp"
#include "queue/current_call.hpp"
#include "shmem/leased_calls.hpp"

namespace mq {

namespace {

constexpr const char* kNoReason = "cancelled by mq_cancel";

Error of_the_call() {
  return {"55000", "mq_cancel must not be called by the handler of the message",
          "It would be interrupted, and all that it has written would be rolled back.",
          "mq_discard(reason) keeps what it wrote, and moves the message to the dead letters."};
}

// A handler cannot cancel a message that it was called with.
void refuse_own(const std::vector<Uuid>& ids) {
  static Statement leased("SELECT 1 FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.lease = $2 AND m.lease > 0 LIMIT 1",
                          {UUIDARRAYOID, INT8OID});
  for (const Uuid& id : ids)
    if (is_of_the_call(id)) throw of_the_call();
  const auto handled = shared::handled_here();
  if (handled && !leased.run({uuid_array(ids), Int64GetDatum(handled->token)}).empty()) throw of_the_call();
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_cancel_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_cancel()");
    const std::vector<Datum> given = mq::elements(mq::argument(fcinfo, 0), "ids");
    std::string why = PG_ARGISNULL(1) ? "" : mq::kept(std::string(mq::text_view(PG_GETARG_DATUM(1))));
    if (why.empty()) why = mq::kNoReason;
    std::vector<mq::Uuid> ids;
    for (const Datum datum : given) ids.push_back(mq::uuid_of(datum));
    std::vector<mq::Uuid> sorted = ids;
    std::sort(sorted.begin(), sorted.end());
    sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
    mq::ResultSet result(fcinfo);
    std::unordered_set<mq::Uuid, mq::UuidHash> cancelled;
    {
      const mq::OwnerScope scope;
      const mq::SpiConnection spi;
      mq::locks::lock_to_write(mq::Extension::msgs());
      mq::refuse_own(sorted);
      mq::note_changed(sorted);
      for (const mq::Uuid& id : mq::cancel(sorted, why)) cancelled.insert(id);
    }
    // In the order of the argument, without duplicates.
    for (const mq::Uuid& id : ids)
      if (cancelled.erase(id) != 0) result.add({mq::uuid_datum(id)});
    return Datum{0};
  });
}
