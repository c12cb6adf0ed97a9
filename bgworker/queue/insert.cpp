#include "queue/insert.hpp"

#include <algorithm>
#include <vector>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "queue/plain_table.hpp"

extern "C" {
#include "access/tableam.h"
#include "executor/executor.h"
#include "utils/memutils.h"
}

namespace mq {

namespace {

constexpr std::size_t kAtOnce = 500;

// For bodies of guard::call(): after an error the transaction cleans up.
class Inserter {
 public:
  // False: an INSERT has to write the rows, and nothing is open.
  bool open(Oid table, const AttrNumber* numbers, int most) {
    numbers_ = numbers;
    if (!table_.open(table, numbers)) return false;
    slots_ = static_cast<TupleTableSlot**>(palloc(sizeof(TupleTableSlot*) * static_cast<Size>(most)));
    for (most_ = 0; most_ < most; ++most_) slots_[most_] = table_.create_slot();
    return true;
  }

  void insert(const NewRow* rows, int count) {
    for (int i = 0; i < count; ++i) {
      ExecClearTuple(slots_[i]);
      memset(slots_[i]->tts_isnull, true, static_cast<Size>(slots_[i]->tts_tupleDescriptor->natts));  // dropped columns
      for (int column = 0; column < kAllColumns; ++column) {
        slots_[i]->tts_values[numbers_[column] - 1] = rows[i].values[column];
        slots_[i]->tts_isnull[numbers_[column] - 1] = rows[i].nulls[column];
      }
      ExecStoreVirtualTuple(slots_[i]);
    }
    const MemoryContext before = MemoryContextSwitchTo(GetPerTupleMemoryContext(table_.state()));
    table_multi_insert(table_.relation(), slots_, count, table_.command(), 0, nullptr);
    MemoryContextSwitchTo(before);
    for (int i = 0; i < count; ++i) {
      table_.insert_index_entries(slots_[i], false);
      ExecClearTuple(slots_[i]);
    }
  }

  void close() {
    for (int i = 0; i < most_; ++i) ExecDropSingleTupleTableSlot(slots_[i]);
    table_.close();
  }

 private:
  const AttrNumber* numbers_;
  PlainTable table_;
  TupleTableSlot** slots_;
  int most_;
};

struct InContext {
  explicit InContext(MemoryContext context) : before(MemoryContextSwitchTo(context)) {}
  ~InContext() { MemoryContextSwitchTo(before); }
  InContext(const InContext&) = delete;
  InContext& operator=(const InContext&) = delete;
  const MemoryContext before;
};

}  // namespace

bool insert_messages(std::size_t count, const std::function<void(std::size_t i, NewRow& row)>& fill) {
  const Oid table = Extension::msgs();
  const AttrNumber* numbers = attribute_numbers(table);
  const std::size_t at_once = std::min(count, kAtOnce);
  std::vector<NewRow> rows(at_once);
  const NewRow* const first = rows.data();
  Inserter inserter;
  MemoryContext memory = guard::call([&]() -> MemoryContext {
    if (!inserter.open(table, numbers, static_cast<int>(at_once))) return nullptr;
    return AllocSetContextCreate(CurrentMemoryContext, "mq rows", ALLOCSET_DEFAULT_SIZES);
  });
  if (memory == nullptr) return false;
  for (std::size_t from = 0; from < count; from += at_once) {
    const std::size_t n = std::min(at_once, count - from);
    {
      const InContext in_memory(memory);
      for (std::size_t i = 0; i < n; ++i) fill(from + i, rows[i]);
    }
    guard::call([&] {
      inserter.insert(first, static_cast<int>(n));
      MemoryContextReset(memory);
      CHECK_FOR_INTERRUPTS();
    });
  }
  guard::call([&] {
    inserter.close();
    MemoryContextDelete(memory);
  });
  return true;
}

}  // namespace mq
