#include "pg/index_scan.hpp"

#include "pg/versions.hpp"

extern "C" {
#include "access/nbtree.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_collation.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
}

namespace mq {

bool is_unused(Oid table, Oid index) {
  // The table first, as everybody locks them: TRUNCATE waits for this one's index otherwise, and it for the table.
  table_close(table_open(table, AccessShareLock), NoLock);
  const Relation relation = index_open(index, AccessShareLock);
  const bool unused = RelationGetNumberOfBlocks(relation) <= 1;  // the metapage
  index_close(relation, NoLock);
  return unused;
}

void EntryScan::open(Oid table, Oid index, const RegProcedure* compare, int columns, int first, Datum prefix,
                     std::int16_t second) {
  open_relations(table, index);
  Assert(columns > 1 && columns <= kMostColumns);
  columns_ = columns;
  key_count_ = 0;
  if (first > 1)
    ScanKeyEntryInitialize(&keys_[key_count_++], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, F_TEXTEQ,
                           prefix);
  if (first > 2)
    ScanKeyEntryInitialize(&keys_[key_count_++], 0, 2, BTEqualStrategyNumber, InvalidOid, InvalidOid, F_INT2EQ,
                           Int16GetDatum(second));
  // The keys of a row comparison, as the executor builds them.
  for (int i = 0; i < columns; ++i)
    ScanKeyEntryInitialize(&row_[i], SK_ROW_MEMBER | (i == columns - 1 ? SK_ROW_END : 0),
                           static_cast<AttrNumber>(first + i), BTGreaterEqualStrategyNumber, InvalidOid,
                           compare[i] == F_BTTEXTCMP ? C_COLLATION_OID : InvalidOid, compare[i], 0);
  ScanKeyData& header = keys_[key_count_++];
  memset(&header, 0, sizeof header);
  header.sk_flags = SK_ROW_HEADER;
  header.sk_attno = row_[0].sk_attno;
  header.sk_strategy = BTGreaterEqualStrategyNumber;
  header.sk_argument = PointerGetDatum(row_);
  begin();
}

void EntryScan::open_downwards(Oid table, Oid index, Datum prefix) {
  open_relations(table, index);
  columns_ = 0;
  key_count_ = 2;
  ScanKeyEntryInitialize(&keys_[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, F_TEXTEQ, prefix);
  ScanKeyEntryInitialize(&keys_[1], 0, 2, BTLessEqualStrategyNumber, InvalidOid, InvalidOid, F_INT2LE, 0);
  begin();
}

void EntryScan::open_relations(Oid table, Oid index) {
  table_ = table_open(table, AccessShareLock);
  index_ = index_open(index, AccessShareLock);
  slot_ = table_slot_create(table_, nullptr);
}

void EntryScan::begin() {
  PushActiveSnapshot(GetLatestSnapshot());
  scan_ = server::begin_index_scan(table_, index_, GetActiveSnapshot(), key_count_);
  scan_->xs_want_itup = true;
}

void EntryScan::descend(const Datum* position) {
  for (int i = 0; i < columns_; ++i) row_[i].sk_argument = position[i];
  if (columns_ == 0) keys_[1].sk_argument = position[0];
  index_rescan(scan_, keys_, key_count_, nullptr, 0);
}

bool EntryScan::next() {
  return index_getnext_tid(scan_, ForwardScanDirection) != nullptr;
}

void EntryScan::close() {
  index_endscan(scan_);
  PopActiveSnapshot();
  ExecDropSingleTupleTableSlot(slot_);
  index_close(index_, NoLock);
  table_close(table_, NoLock);
}

}  // namespace mq
