#include "queue/plain_table.hpp"

#include <iterator>

extern "C" {
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
}

namespace mq {

namespace {

// Whether a column is as mq made it; NOT NULL and a type may have been added by hand.
bool is_as_made(const FormData_pg_attribute& attribute, ClaimColumn column) {
  switch (column) {
    case kAttemptAt:
    case kAfter:
    case kCommitInterval:
    case kPayloadJson:
    case kPayloadBytes:
    case kExpiresAt:
    case kCreatedAt:
    case kLeaseToken:
    case kDedupKey:
    case kHeaders:
    case kKeep:
    case kDueAt:
      if (attribute.attnotnull) return false;
      break;
    default:
      break;
  }
  static constexpr Oid kTypes[] = {UUIDOID,  INT8OID,  INT8OID,        TIMESTAMPTZOID, INTERVALOID,   TEXTOID,
                                   TEXTOID,  TEXTOID,  INT4OID,        INT4OID,        UUIDOID,       INTERVALOID,
                                   JSONBOID, BYTEAOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID,       TEXTOID,
                                   BOOLOID,  JSONBOID, INT2OID,        INTERVALOID,    TIMESTAMPTZOID};
  static_assert(std::size(kTypes) == kAllColumns);
  return attribute.atttypid == kTypes[column] && attribute.atttypmod == -1 && attribute.attgenerated == '\0';
}

// Whether the table has nothing but what it was created with. Its lock is held.
bool is_plain(Relation table, const AttrNumber* numbers) {
  if (table->rd_rel->relkind != RELKIND_RELATION || table->rd_rel->relrowsecurity || table->trigdesc != nullptr ||
      table->rd_rules != nullptr)
    return false;
  TupleDesc descriptor = RelationGetDescr(table);
  if (descriptor->constr != nullptr && descriptor->constr->num_check > 0) return false;
  int columns = 0;
  for (int i = 0; i < descriptor->natts; ++i)
    if (!TupleDescAttr(descriptor, i)->attisdropped) ++columns;
  if (columns != kAllColumns) return false;
  for (int column = 0; column < kAllColumns; ++column)
    if (!is_as_made(*TupleDescAttr(descriptor, numbers[column] - 1), static_cast<ClaimColumn>(column))) return false;
  return true;
}

}  // namespace

bool PlainTable::open(Oid table, const AttrNumber* numbers) {
  table_ = table_open(table, RowExclusiveLock);
  if (!is_plain(table_, numbers)) {
    table_close(table_, NoLock);
    return false;
  }
  state_ = CreateExecutorState();
  info_ = makeNode(ResultRelInfo);
  InitResultRelInfo(info_, table_, 0, nullptr, 0);
  ExecOpenIndices(info_, false);
  command_ = GetCurrentCommandId(true);
  return true;
}

void PlainTable::close() {
  ExecCloseIndices(info_);
  FreeExecutorState(state_);
  table_close(table_, NoLock);
  CommandCounterIncrement();
}

TupleTableSlot* PlainTable::create_slot() const {
  return table_slot_create(table_, nullptr);
}

void PlainTable::insert_index_entries(TupleTableSlot* slot, bool updated, [[maybe_unused]] bool summarizing) {
  slot->tts_tableOid = RelationGetRelid(table_);
#if PG_VERSION_NUM >= 160000
  list_free(ExecInsertIndexTuples(info_, slot, state_, updated, false, nullptr, NIL, summarizing));
#else
  list_free(ExecInsertIndexTuples(info_, slot, state_, updated, false, nullptr, NIL));
#endif
  ResetPerTupleExprContext(state_);
}

bool RowUpdater::open(Oid table, const AttrNumber* numbers) {
  if (!table_.open(table, numbers)) return false;
  CheckCmdReplicaIdentity(table_.relation(), CMD_UPDATE);  // may refuse where a publication has the table
  old_ = table_.create_slot();
  new_ = table_.create_slot();
  PushActiveSnapshot(GetLatestSnapshot());
  return true;
}

void RowUpdater::close() {
  PopActiveSnapshot();
  ExecDropSingleTupleTableSlot(old_);
  ExecDropSingleTupleTableSlot(new_);
  table_.close();
}

bool RowUpdater::copy_old(const ItemPointerData& location) {
  ItemPointerData at = location;
  if (!table_tuple_fetch_row_version(table_.relation(), &at, GetActiveSnapshot(), old_)) return false;
  slot_getallattrs(old_);
  const auto columns = static_cast<Size>(old_->tts_tupleDescriptor->natts);
  ExecClearTuple(new_);
  memcpy(new_->tts_values, old_->tts_values, sizeof(Datum) * columns);
  memcpy(new_->tts_isnull, old_->tts_isnull, sizeof(bool) * columns);
  return true;
}

bool RowUpdater::write_new(ItemPointerData location, bool wait) {
  ExecStoreVirtualTuple(new_);
  TM_FailureData failure;
  LockTupleMode mode;
#if PG_VERSION_NUM >= 160000
  TU_UpdateIndexes update_indexes = TU_None;
#else
  bool update_indexes = false;
#endif
  const TM_Result result = table_tuple_update(table_.relation(), &location, new_, table_.command(), GetActiveSnapshot(),
                                              InvalidSnapshot, wait, &failure, &mode, &update_indexes);
  if (result != TM_Ok) return false;
#if PG_VERSION_NUM >= 160000
  if (update_indexes != TU_None) table_.insert_index_entries(new_, true, update_indexes == TU_Summarizing);
#else
  if (update_indexes) table_.insert_index_entries(new_, true);
#endif
  return true;
}

}  // namespace mq
