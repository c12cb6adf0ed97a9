#include "queue/insert.hpp"

#include <algorithm>
#include <vector>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/plain_table.hpp"
#include "queue/claimed_rows.hpp"

extern "C" {
#include "access/tableam.h"
#include "executor/executor.h"
#include "utils/memutils.h"
}

namespace mq {

namespace {

constexpr std::size_t kAtOnce = 500;

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
  RowInserter inserter;
  MemoryContext memory = guard::call([&]() -> MemoryContext {
    if (!inserter.open(table, msgs_columns(numbers), static_cast<int>(at_once))) return nullptr;
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
      for (std::size_t i = 0; i < n; ++i) inserter.add(first[i].values, first[i].nulls);
      inserter.write();
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
