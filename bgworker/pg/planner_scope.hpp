// Planner scope: while it lives, plans are made for large tables and take the indexes, whatever the
// statistics say. The plan of each statement of mq is made in one (statement.cpp), once, and kept, while
// the tables fill and empty. The state is the planner's settings of this process. No code of others
// runs in a scope.
#pragma once

namespace mq {

class PlannerScope {
 public:
  PlannerScope();
  ~PlannerScope();
  PlannerScope(const PlannerScope&) = delete;
  PlannerScope& operator=(const PlannerScope&) = delete;

 private:
  struct {
    bool seqscan, bitmapscan, indexscan, indexonlyscan, sort, nestloop, hashjoin, mergejoin, material, jit;
    int plan_cache_mode;
  } const saved_;
};

}  // namespace mq
