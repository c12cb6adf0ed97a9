// Subtransactions: values that belong to the subtransaction in which they were noted. Its rollback
// drops them, its commit hands them on to its parent. The commit actions and the current call keep
// such values; the state is theirs.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "pg/postgres.hpp"

extern "C" {
#include "access/xact.h"
}

namespace mq {

struct SubtransactionEnd {
  bool committed;
  SubTransactionId mine, parent;
};

// Calls `end` at the end of each subtransaction of this process from now on. Allocates, so it may
// raise an error. No pg guard would catch an exception of `end`, so that must not throw.
void at_subtransaction_end(void (*end)(const SubtransactionEnd&));

template <class T>
class BySubtransaction {
 public:
  void add(T value) { entries_.emplace_back(GetCurrentSubTransactionId(), std::move(value)); }
  void ends(const SubtransactionEnd& end) {
    if (!end.committed) {
      std::erase_if(entries_, [&](const auto& entry) { return entry.first == end.mine; });
      return;
    }
    for (auto& entry : entries_)
      if (entry.first == end.mine) entry.first = end.parent;
  }
  template <class F>
  void for_each(F&& visit) {
    for (auto& entry : entries_) visit(entry.second);
  }
  template <class F>
  void remove_if(F&& is_it) {
    std::erase_if(entries_, [&](const auto& entry) { return is_it(entry.second); });
  }
  bool empty() const { return entries_.empty(); }
  // Each with its subtransaction.
  const std::vector<std::pair<SubTransactionId, T>>& entries() const { return entries_; }

 private:
  std::vector<std::pair<SubTransactionId, T>> entries_;
};

}  // namespace mq
