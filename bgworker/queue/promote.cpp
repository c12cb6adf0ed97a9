#include "queue/promote.hpp"

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "queue/plain_table.hpp"

extern "C" {
#include "access/tableam.h"
#include "executor/executor.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"
}

namespace mq {

namespace {

// For the body of guard::call(): after an error the transaction cleans up.
class Promoter {
 public:
  bool open(Oid table, const AttrNumber* numbers) {
    if (!table_.open(table, numbers)) return false;
    CheckCmdReplicaIdentity(table_.relation(), CMD_UPDATE);  // may refuse where a publication has the table
    after_ = numbers[kAfter] - 1;
    old_ = table_.create_slot();
    new_ = table_.create_slot();
    PushActiveSnapshot(GetLatestSnapshot());
    return true;
  }

  bool promote(const FirstMessage& message) {
    if (update(message.location)) return true;
    // A lock FOR KEY SHARE, of an append behind the message or a foreign key, does not go with an
    // UPDATE that must not wait, but with a lock for one.
    ItemPointerData location = message.location;
    TM_FailureData failure;
    const TM_Result result =
        table_tuple_lock(table_.relation(), &location, GetActiveSnapshot(), old_, table_.command(),
                         LockTupleNoKeyExclusive, LockWaitSkip, TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS, &failure);
    return result == TM_Ok && update(message.location, true);
  }

  void close() {
    PopActiveSnapshot();
    ExecDropSingleTupleTableSlot(old_);
    ExecDropSingleTupleTableSlot(new_);
    table_.close();
  }

 private:
  // `wait`: for others that have a lock which goes with the update, for none in fact.
  bool update(ItemPointerData location, bool wait = false) {
    if (!table_tuple_fetch_row_version(table_.relation(), &location, GetActiveSnapshot(), old_)) return false;
    slot_getallattrs(old_);
    const int columns = old_->tts_tupleDescriptor->natts;
    ExecClearTuple(new_);
    memcpy(new_->tts_values, old_->tts_values, sizeof(Datum) * static_cast<Size>(columns));
    memcpy(new_->tts_isnull, old_->tts_isnull, sizeof(bool) * static_cast<Size>(columns));
    new_->tts_values[after_] = PointerGetDatum(&nil_);
    new_->tts_isnull[after_] = false;
    ExecStoreVirtualTuple(new_);
    TM_FailureData failure;
    LockTupleMode mode;
#if PG_VERSION_NUM >= 160000
    TU_UpdateIndexes update_indexes = TU_None;
#else
    bool update_indexes = false;
#endif
    const TM_Result result =
        table_tuple_update(table_.relation(), &location, new_, table_.command(), GetActiveSnapshot(), InvalidSnapshot,
                           wait, &failure, &mode, &update_indexes);
    if (result != TM_Ok) return false;
    if (update_indexes) table_.insert_index_entries(new_, true);
    return true;
  }

  PlainTable table_;
  int after_;
  TupleTableSlot* old_;
  TupleTableSlot* new_;
  pg_uuid_t nil_ = {};
};

}  // namespace

std::optional<std::vector<char>> promote(const std::vector<const FirstMessage*>& messages) {
  const Oid table = Extension::msgs();
  const AttrNumber* numbers = attribute_numbers(table);
  std::vector<char> promoted(messages.size(), 0);
  const bool asked = guard::call([&] {
    Promoter promoter;
    if (!promoter.open(table, numbers)) return false;
    for (std::size_t i = 0; i < messages.size(); ++i) {
      CHECK_FOR_INTERRUPTS();
      promoted[i] = promoter.promote(*messages[i]);
    }
    promoter.close();
    return true;
  });
  return asked ? std::optional(std::move(promoted)) : std::nullopt;
}

}  // namespace mq
