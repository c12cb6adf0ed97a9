#include "pg/empty_table.hpp"

#include "pg/guard.hpp"

extern "C" {
#include "access/table.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"
}

namespace mq {

bool has_no_block(Oid table) {
  return guard::call([&] {
    const Relation relation = table_open(table, RowShareLock);
    const BlockNumber blocks = RelationGetNumberOfBlocks(relation);
    table_close(relation, NoLock);
    return blocks == 0;
  });
}

}  // namespace mq
