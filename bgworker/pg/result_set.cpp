#include "pg/result_set.hpp"

namespace mq {

ResultSet::ResultSet(FunctionCallInfo fcinfo) {
  auto* info = reinterpret_cast<ReturnSetInfo*>(fcinfo->resultinfo);
  if (info == nullptr || !IsA(info, ReturnSetInfo) || (info->allowedModes & SFRM_Materialize) == 0)
    throw Error("0A000", "set-valued function called in context that cannot accept a set");
  guard::call([&] {
    const MemoryContext before = MemoryContextSwitchTo(info->econtext->ecxt_per_query_memory);
    descriptor_ = CreateTupleDescCopy(info->expectedDesc);
    store_ = tuplestore_begin_heap((info->allowedModes & SFRM_Materialize_Random) != 0, false, work_mem);
    MemoryContextSwitchTo(before);
  });
  info->returnMode = SFRM_Materialize;
  info->setResult = store_;
  info->setDesc = descriptor_;
}

void ResultSet::add(std::initializer_list<Param> columns) {
  constexpr std::size_t kMost = 32;
  Datum values[kMost];
  bool nulls[kMost];
  std::size_t n = 0;
  for (const Param& column : columns) {
    values[n] = column.value;
    nulls[n++] = column.null;
  }
  guard::call([&] { tuplestore_putvalues(store_, descriptor_, values, nulls); });
}

}  // namespace mq
