#include "pg/planner_scope.hpp"

#include <algorithm>

#include "pg/postgres.hpp"

extern "C" {
#include "access/transam.h"
#include "jit/jit.h"
#include "optimizer/cost.h"
#include "optimizer/paths.h"
#include "optimizer/plancat.h"
#include "utils/plancache.h"
}

namespace mq {

namespace {

int scopes = 0;  // how many are open
get_relation_info_hook_type previous_hook = nullptr;

// Of an empty table the planner thinks that its whole index is read as fast as one row.
void take_for_large(PlannerInfo* root, Oid relation, bool inherits, RelOptInfo* info) {
  constexpr double kRows = 1e6;
  constexpr BlockNumber kPages = 20000;
  if (previous_hook != nullptr) previous_hook(root, relation, inherits, info);
  if (scopes == 0 || relation < FirstNormalObjectId) return;
  info->tuples = std::max(info->tuples, kRows);
  info->pages = std::max(info->pages, kPages);
  ListCell* cell = nullptr;
  foreach (cell, info->indexlist) {
    auto* index = static_cast<IndexOptInfo*>(lfirst(cell));
    index->tuples = std::max(index->tuples, kRows);
    index->pages = std::max(index->pages, kPages / 4);
    index->tree_height = std::max(index->tree_height, 2);
  }
}

void set_hook() {
  static bool set = false;
  if (set) return;
  set = true;
  previous_hook = get_relation_info_hook;
  get_relation_info_hook = take_for_large;
}

}  // namespace

PlannerScope::PlannerScope()
    : saved_{enable_seqscan,  enable_bitmapscan, enable_indexscan, enable_indexonlyscan,
             enable_sort,     enable_nestloop,   enable_hashjoin,  enable_mergejoin,
             enable_material, jit_enabled,       plan_cache_mode} {
  set_hook();
  ++scopes;
  enable_seqscan = enable_bitmapscan = enable_sort = enable_hashjoin = enable_mergejoin = enable_material = false;
  enable_indexscan = enable_indexonlyscan = enable_nestloop = true;
  jit_enabled = false;
  plan_cache_mode = PLAN_CACHE_MODE_FORCE_GENERIC_PLAN;
}

PlannerScope::~PlannerScope() {
  --scopes;
  enable_seqscan = saved_.seqscan;
  enable_bitmapscan = saved_.bitmapscan;
  enable_indexscan = saved_.indexscan;
  enable_indexonlyscan = saved_.indexonlyscan;
  enable_sort = saved_.sort;
  enable_nestloop = saved_.nestloop;
  enable_hashjoin = saved_.hashjoin;
  enable_mergejoin = saved_.mergejoin;
  enable_material = saved_.material;
  jit_enabled = saved_.jit;
  plan_cache_mode = saved_.plan_cache_mode;
}

}  // namespace mq
