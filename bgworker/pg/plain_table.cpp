#include "pg/plain_table.hpp"

#include <algorithm>
#include <iterator>
#include <memory>
#include <vector>

#include "pg/guard.hpp"
#include "pg/versions.hpp"

extern "C" {
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
}

namespace mq {

namespace {

constexpr std::size_t kAtOnce = 500;  // rows that insert_rows() writes together

// Whether a column is as mq made it; NOT NULL and a type may have been added by hand.
bool is_as_made(const FormData_pg_attribute& attribute, const TableColumn& column) {
  return (!column.nullable || !attribute.attnotnull) && attribute.atttypid == column.type &&
         attribute.atttypmod == -1 && attribute.attgenerated == '\0';
}

// Whether the table has nothing but what it was created with. Its lock is held.
bool is_plain(Relation table, const PlainColumns& columns) {
  if (table->rd_rel->relkind != RELKIND_RELATION || table->rd_rel->relrowsecurity || table->trigdesc != nullptr ||
      table->rd_rules != nullptr)
    return false;
  TupleDesc descriptor = RelationGetDescr(table);
  if (descriptor->constr != nullptr && descriptor->constr->num_check > 0) return false;
  std::size_t there = 0;
  for (int i = 0; i < descriptor->natts; ++i)
    if (!TupleDescAttr(descriptor, i)->attisdropped) ++there;
  if (there != columns.columns.size()) return false;
  for (std::size_t i = 0; i < there; ++i) {
    const AttrNumber number = columns.numbers[i];
    if (number == InvalidAttrNumber || !is_as_made(*TupleDescAttr(descriptor, number - 1), columns.columns[i]))
      return false;
  }
  return true;
}

// Whether the node calls a function that does not come with the server: its definition may change.
bool calls_others(Node* node, void*) {
  const auto is_other = [](Oid function, void*) { return function >= FirstNormalObjectId; };
  if (node == nullptr) return false;
  if (check_functions_in_node(node, is_other, nullptr)) return true;
  return server::walk_expression(node, calls_others, nullptr);
}

// What ExecInsertIndexTuples() makes of an index's predicate before it asks it: for one row that takes longer than the
// rest. So it is kept for the life of the process, by the predicate. NULL: it cannot be kept.
ExprState* prepared(List* predicate) {
  constexpr int kMost = 32;
  static MemoryContext memory = nullptr;
  static struct {
    List* predicate;
    ExprState* state;
  } known[kMost];
  static int count = 0;
  for (int i = 0; i < count; ++i)
    if (equal(known[i].predicate, predicate)) return known[i].state;
  if (count == kMost || calls_others(reinterpret_cast<Node*>(predicate), nullptr)) return nullptr;
  if (memory == nullptr) memory = AllocSetContextCreate(TopMemoryContext, "mq index predicates", ALLOCSET_SMALL_SIZES);
  const MemoryContext before = MemoryContextSwitchTo(memory);
  known[count].predicate = static_cast<List*>(copyObjectImpl(predicate));
  known[count].state = ExecInitQual(
      reinterpret_cast<List*>(expression_planner(reinterpret_cast<Expr*>(known[count].predicate))), nullptr);
  MemoryContextSwitchTo(before);
  return known[count++].state;
}

}  // namespace

bool PlainTable::open(Oid table, const PlainColumns& columns) {
  table_ = table_open(table, RowExclusiveLock);
  if (!is_plain(table_, columns)) {
    table_close(table_, NoLock);
    return false;
  }
  state_ = CreateExecutorState();
  info_ = makeNode(ResultRelInfo);
  InitResultRelInfo(info_, table_, 0, nullptr, 0);
  ExecOpenIndices(info_, false);
  for (int i = 0; i < info_->ri_NumIndices; ++i) {
    IndexInfo* index = info_->ri_IndexRelationInfo[i];
    if (index->ii_Predicate != NIL) index->ii_PredicateState = prepared(index->ii_Predicate);
  }
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

void PlainTable::insert_index_entries(TupleTableSlot* slot, bool updated, bool summarizing) {
  slot->tts_tableOid = RelationGetRelid(table_);
  server::insert_index_entries(info_, slot, state_, updated, summarizing);
  ResetPerTupleExprContext(state_);
}

bool RowInserter::open(Oid table, const PlainColumns& columns, int most) {
  columns_ = columns;
  if (!table_.open(table, columns)) return false;
  slots_ = static_cast<TupleTableSlot**>(palloc(sizeof(TupleTableSlot*) * static_cast<Size>(most)));
  for (most_ = 0; most_ < most; ++most_) slots_[most_] = table_.create_slot();
  added_ = 0;
  return true;
}

void RowInserter::add(const Datum* values, const bool* nulls) {
  TupleTableSlot* slot = slots_[added_++];
  ExecClearTuple(slot);
  memset(slot->tts_isnull, true, static_cast<Size>(slot->tts_tupleDescriptor->natts));  // dropped columns
  for (std::size_t i = 0; i < columns_.columns.size(); ++i) {
    slot->tts_values[columns_.numbers[i] - 1] = values[i];
    slot->tts_isnull[columns_.numbers[i] - 1] = nulls[i];
  }
  ExecStoreVirtualTuple(slot);
}

void RowInserter::write() {
  const MemoryContext before = MemoryContextSwitchTo(GetPerTupleMemoryContext(table_.state()));
  table_multi_insert(table_.relation(), slots_, added_, table_.command(), 0, nullptr);
  MemoryContextSwitchTo(before);
  for (int i = 0; i < added_; ++i) {
    table_.insert_index_entries(slots_[i], false);
    ExecClearTuple(slots_[i]);
  }
  added_ = 0;
}

void RowInserter::close() {
  for (int i = 0; i < most_; ++i) ExecDropSingleTupleTableSlot(slots_[i]);
  table_.close();
}

bool insert_rows(Oid table, std::span<const TableColumn> columns, std::span<const Param> values) {
  const std::size_t width = columns.size();
  const std::size_t rows = values.size() / width;
  const auto most = static_cast<int>(std::min(rows, kAtOnce));
  std::vector<AttrNumber> numbers(width);
  std::vector<Datum> datums(width);
  const auto nulls = std::make_unique<bool[]>(width);
  return guard::call([&] {
    for (std::size_t i = 0; i < width; ++i) numbers[i] = get_attnum(table, columns[i].name);
    RowInserter inserter;
    if (!inserter.open(table, {columns, numbers.data()}, most)) return false;
    for (std::size_t row = 0; row < rows;) {
      for (std::size_t i = 0; i < width; ++i) {
        datums[i] = values[row * width + i].value;
        nulls[i] = values[row * width + i].null;
      }
      inserter.add(datums.data(), nulls.get());
      if (++row % kAtOnce == 0 || row == rows) inserter.write();
      CHECK_FOR_INTERRUPTS();
    }
    inserter.close();
    return true;
  });
}

bool RowUpdater::open(Oid table, const PlainColumns& columns) {
  if (!table_.open(table, columns)) return false;
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

bool RowUpdater::lock(const ItemPointerData& location) {
  ItemPointerData at = location;
  TM_FailureData failure;
  return table_tuple_lock(table_.relation(), &at, GetActiveSnapshot(), old_, table_.command(), LockTupleNoKeyExclusive,
                          LockWaitSkip, 0, &failure) == TM_Ok &&
         copy_old(location);
}

bool RowUpdater::write_new(ItemPointerData location, bool wait) {
  ExecStoreVirtualTuple(new_);
  auto entries = server::NewEntries::kNone;
  const TM_Result result =
      server::update_row(table_.relation(), &location, new_, table_.command(), GetActiveSnapshot(), wait, &entries);
  if (result != TM_Ok) return false;
  if (entries != server::NewEntries::kNone)
    table_.insert_index_entries(new_, true, entries == server::NewEntries::kSummarizing);
  return true;
}

}  // namespace mq
