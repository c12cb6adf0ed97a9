#include "pg/refused_rows.hpp"

#include "pg/format.hpp"
#include "pg/guard.hpp"

extern "C" {
#include "utils/rel.h"
#include "utils/relcache.h"
}

namespace mq {

bool may_refuse(Oid table) {
  return guard::call([&] {
    const Relation relation = RelationIdGetRelation(table);
    if (relation == nullptr) return false;
    const bool may = relation->trigdesc != nullptr || relation->rd_rules != nullptr || relation->rd_rel->relrowsecurity;
    RelationClose(relation);
    return may;
  });
}

Error refused(const char* table, const char* what) {
  return {"27000", mq::format("a trigger, rule or policy on {} keeps rows from {}", table, what), "",
          "Drop it, or have it let through what mq writes."};
}

}  // namespace mq
