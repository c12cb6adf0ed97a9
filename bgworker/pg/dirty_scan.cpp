#include "pg/dirty_scan.hpp"

#include "pg/versions.hpp"

extern "C" {
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "utils/fmgroids.h"
}

namespace mq {

void DirtyScan::open(Oid table, Oid index) {
  table_ = table_open(table, AccessShareLock);
  index_ = index_open(index, AccessShareLock);
  slot_ = table_slot_create(table_, nullptr);
  scan_ = nullptr;
  InitDirtySnapshot(dirty_);
  dirty_.xmin = dirty_.xmax = InvalidTransactionId;
}

void DirtyScan::find(const pg_uuid_t* first, Second how, const pg_uuid_t* second) {
  struct Operator {
    StrategyNumber strategy;
    RegProcedure function;
  };
  static constexpr Operator kOperators[] = {{InvalidStrategy, InvalidOid},
                                            {BTEqualStrategyNumber, F_UUID_EQ},
                                            {BTGreaterStrategyNumber, F_UUID_GT},
                                            {BTLessEqualStrategyNumber, F_UUID_LE}};
  const int keys = how == Second::kAny ? 1 : 2;
  ScanKeyInit(&keys_[0], 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(first));
  if (keys == 2) {
    const Operator& op = kOperators[static_cast<int>(how)];
    ScanKeyInit(&keys_[1], 2, op.strategy, op.function, UUIDPGetDatum(second));
  }
  if (scan_ != nullptr && keys != key_count_) {
    index_endscan(scan_);
    scan_ = nullptr;
  }
  key_count_ = keys;
  if (scan_ == nullptr) scan_ = server::begin_index_scan(table_, index_, &dirty_, keys);
  index_rescan(scan_, keys_, keys, nullptr, 0);
}

bool DirtyScan::next() {
  return index_getnext_slot(scan_, ForwardScanDirection, slot_);
}

void DirtyScan::close() {
  if (scan_ != nullptr) index_endscan(scan_);
  ExecDropSingleTupleTableSlot(slot_);
  index_close(index_, NoLock);
  table_close(table_, NoLock);
}

}  // namespace mq
