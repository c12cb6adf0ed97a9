#include "queue/stay_locks.hpp"

#include <vector>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "queue/claimed_rows.hpp"

extern "C" {
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
}

namespace mq {

namespace {

// Whether the row that was locked has no newer version, of a transaction in progress. One that comes later takes
// our lock with it.
bool is_last_version(TupleTableSlot* slot) {
  const HeapTuple tuple = ExecFetchSlotHeapTuple(slot, false, nullptr);
  return HEAP_XMAX_IS_LOCKED_ONLY(tuple->t_data->t_infomask);
}

bool is_head(TupleTableSlot* slot, const AttrNumber* numbers) {
  bool null = false;
  const Datum after = slot_getattr(slot, numbers[kAfter], &null);
  return !null && uuid_of(after) == Uuid();
}

}  // namespace

std::unordered_set<Uuid, UuidHash> lock_to_stay(std::span<const Located> messages, bool heads) {
  std::unordered_set<Uuid, UuidHash> result;
  if (messages.empty()) return result;
  const Oid table = Extension::msgs();
  const AttrNumber* numbers = attribute_numbers(table);
  std::vector<char> locked(messages.size(), 0);
  guard::call([&] {
    const Relation relation = table_open(table, RowShareLock);
    TupleTableSlot* slot = table_slot_create(relation, nullptr);
    PushActiveSnapshot(GetLatestSnapshot());
    for (std::size_t i = 0; i < messages.size(); ++i) {
      CHECK_FOR_INTERRUPTS();
      ItemPointerData location = messages[i].location;
      TM_FailureData failure;
      // Without TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS, which is what waits.
      const TM_Result tried =
          table_tuple_lock(relation, &location, GetActiveSnapshot(), slot, GetCurrentCommandId(true), LockTupleKeyShare,
                           LockWaitSkip, TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
      locked[i] = tried == TM_Ok && is_last_version(slot) && (!heads || is_head(slot, numbers));
    }
    PopActiveSnapshot();
    ExecDropSingleTupleTableSlot(slot);
    table_close(relation, NoLock);
  });
  for (std::size_t i = 0; i < messages.size(); ++i)
    if (locked[i] != 0) result.insert(messages[i].id);
  return result;
}

}  // namespace mq
