// mq_row_holders: the transactions that have locked due messages.
//
// mq_health() calls it through mq.c. A row's header says who has locked it; pg_locks does not. The
// file owns no state; a share lock on the buffer covers the header while it is read.

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "entries.h"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/result_set.hpp"
#include "pg/statement.hpp"

extern "C" {
#include "access/heapam.h"
#include "access/multixact.h"
#include "access/subtrans.h"
#include "access/table.h"
#include "access/transam.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
}

namespace mq {

namespace {

constexpr int kLooked = 100;      // messages of a channel name, at most
constexpr int kMostLockers = 16;  // of a row, at most

struct Locker {
  int pid;                 // 0: the transaction is prepared, or has just ended
  TransactionId prepared;  // the transaction if pid is 0; otherwise InvalidTransactionId
};

struct Lockers {
  Locker lockers[kMostLockers];
  int count;
};

// The open transactions that have locked or changed the row at `location` (a ctid).
Lockers lockers_of(Oid table, Datum location) {
  return guard::call([&] {
    Lockers lockers{};
    const auto add = [&](TransactionId xid) {
      if (!TransactionIdIsInProgress(xid) || lockers.count == kMostLockers) return;
      const TransactionId top = SubTransGetTopmostTransaction(xid);
      const int pid = BackendXidGetPid(top);
      lockers.lockers[lockers.count++] = {pid, pid == 0 ? top : InvalidTransactionId};
    };
    Relation relation = table_open(table, AccessShareLock);
    HeapTupleData tuple;
    Buffer buffer = InvalidBuffer;
    tuple.t_self = *reinterpret_cast<ItemPointer>(DatumGetPointer(location));
    TransactionId raw = InvalidTransactionId;
    uint16 bits = HEAP_XMAX_INVALID;
    if (heap_fetch(relation, SnapshotAny, &tuple, &buffer, false)) {
      LockBuffer(buffer, BUFFER_LOCK_SHARE);  // xmax and its bits must be of the same moment
      raw = HeapTupleHeaderGetRawXmax(tuple.t_data);
      bits = tuple.t_data->t_infomask;
      UnlockReleaseBuffer(buffer);
    }
    if ((bits & HEAP_XMAX_INVALID) == 0 && (bits & HEAP_XMAX_IS_MULTI) != 0) {
      MultiXactMember* members = nullptr;
      const int count = GetMultiXactIdMembers(raw, &members, false, HEAP_XMAX_IS_LOCKED_ONLY(bits));
      for (int i = 0; i < count; ++i) add(members[i].xid);
    } else if ((bits & HEAP_XMAX_INVALID) == 0 && TransactionIdIsNormal(raw)) {
      add(raw);
    }
    table_close(relation, AccessShareLock);
    return lockers;
  });
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_row_holders_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    static mq::Statement due(
        "WITH RECURSIVE n (name) AS ("
        "  SELECT (SELECT m.channel_name FROM $S.mq_msgs m WHERE $H ORDER BY m.channel_name LIMIT 1)"
        "  UNION ALL SELECT (SELECT m.channel_name FROM $S.mq_msgs m WHERE m.channel_name > n.name AND $H"
        " ORDER BY m.channel_name LIMIT 1) FROM n WHERE n.name IS NOT NULL)"
        " SELECT d.ctid, n.name FROM n CROSS JOIN LATERAL (SELECT m.ctid FROM $S.mq_msgs m"
        "   WHERE m.channel_name = n.name AND m.attempt_at <= pg_catalog.clock_timestamp() AND $H"
        " ORDER BY m.attempt_at, m.seq LIMIT $1) AS d",
        {INT8OID});
    mq::ResultSet result(fcinfo);
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    const Oid table = mq::Extension::msgs();
    const mq::Rows rows = due.run({Int64GetDatum(mq::kLooked)});
    using Holder = std::pair<int, TransactionId>;
    std::map<std::pair<Holder, std::string>, std::int64_t> held;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const mq::Lockers lockers = mq::lockers_of(table, rows.get(i, 1));
      std::set<Holder> holders;
      for (int k = 0; k < lockers.count; ++k) holders.emplace(lockers.lockers[k].pid, lockers.lockers[k].prepared);
      for (const Holder& holder : holders) ++held[{holder, std::string(mq::text_view(rows.get(i, 2)))}];
    }
    for (const auto& [key, messages] : held)
      result.add({Int32GetDatum(key.first.first),
                  key.first.first == 0 ? mq::Param(TransactionIdGetDatum(key.first.second)) : mq::Param(),
                  mq::text_datum(key.second), Int64GetDatum(messages)});
    return Datum{0};
  });
}
