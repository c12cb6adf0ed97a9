#include "pg/row_lockers.hpp"

#include "pg/guard.hpp"

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

Lockers lockers_of(Oid table, Datum location) {
  return guard::call([&] {
    Lockers lockers{};
    const auto add = [&](TransactionId xid) {
      if (!TransactionIdIsInProgress(xid) || lockers.count == kMostLockers) return;
      const TransactionId top = SubTransGetTopmostTransaction(xid);
      const int pid = BackendXidGetPid(top);
      lockers.lockers[lockers.count++] = {pid, top, xid};
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

}  // namespace mq
