#include "handlers/results.hpp"

#include <algorithm>

#include "pg/format.hpp"
#include "pg/guard.hpp"

extern "C" {
#include "catalog/pg_type.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
}

namespace mq {

bool returns_json(Oid function) {
  return guard::call([&] { return getBaseType(get_func_rettype(function)) == JSONBOID; });
}

bool wants_result(const Handler& handler, std::span<const Claimed* const> messages) {
  return handler.returns_json && (handler.keep || std::any_of(messages.begin(), messages.end(),
                                                              [](const Claimed* m) { return m->keep.has_value(); }));
}

Datum result_to_keep(Datum jsonb) {
  const MemoryContext before = MemoryContextSwitchTo(TopTransactionContext);
  const Datum copy = PointerGetDatum(PG_DETOAST_DATUM_COPY(jsonb));
  MemoryContextSwitchTo(before);
  return copy;
}

std::vector<const void*> results_of(Datum jsonb, Shape shape, std::size_t messages) {
  const void* whole = DatumGetPointer(jsonb);
  if (shape != Shape::kBatch) return {whole};
  JsonbContainer* root = &static_cast<Jsonb*>(const_cast<void*>(whole))->root;
  if (!JsonContainerIsArray(root) || JsonContainerIsScalar(root))
    throw Error("22023", "a batch handler must return a jsonb array with an element for each message, or NULL");
  if (JsonContainerSize(root) != messages)
    throw Error("22023", mq::format("a batch handler must return a jsonb array with an element for each message, or "
                                    "NULL; this one has {} elements for {} messages",
                                    JsonContainerSize(root), messages));
  std::vector<const void*> results(messages);
  const void** to = results.data();
  guard::call([&] {
    const MemoryContext before = MemoryContextSwitchTo(TopTransactionContext);
    for (std::size_t i = 0; i < messages; ++i)
      to[i] = JsonbValueToJsonb(getIthJsonbValueFromContainer(root, static_cast<uint32>(i)));
    MemoryContextSwitchTo(before);
  });
  return results;
}

}  // namespace mq
