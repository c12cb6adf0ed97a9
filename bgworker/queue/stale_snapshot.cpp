#include "queue/stale_snapshot.hpp"

#include "pg/guard.hpp"
#include "pg/statement.hpp"

extern "C" {
#include "access/xact.h"
#include "utils/snapmgr.h"
}

namespace mq {

void refuse_stale_snapshot(std::span<const Uuid> messages, const char* message) {
  if (!IsolationUsesXactSnapshot() || messages.empty()) return;
  static Statement visible("SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1)", {UUIDARRAYOID});
  const Datum ids = uuid_array(messages);
  Snapshot own = guard::call([] { return GetTransactionSnapshot(); });
  if (visible.run({ids}, own).size() != messages.size())
    throw Error("40001", message, "", "The transaction might succeed if retried.");
}

}  // namespace mq
