#include "queue/topological.hpp"

#include <functional>
#include <queue>

namespace mq {

std::vector<std::size_t> topological_order(const std::vector<std::vector<std::size_t>>& needs,
                                           const std::vector<bool>& excluded) {
  const std::size_t count = needs.size();
  std::vector<std::vector<std::size_t>> needed_by(count);
  std::vector<std::size_t> missing(count);  // nodes that it needs and that are not in the order yet
  for (std::size_t i = 0; i < count; ++i) {
    missing[i] = needs[i].size();
    for (const std::size_t n : needs[i]) needed_by[n].push_back(i);
  }
  std::priority_queue<std::size_t, std::vector<std::size_t>, std::greater<>> ready;
  for (std::size_t i = 0; i < count; ++i)
    if (missing[i] == 0 && !excluded[i]) ready.push(i);
  std::vector<std::size_t> order;
  while (!ready.empty()) {
    const std::size_t i = ready.top();
    ready.pop();
    order.push_back(i);
    for (const std::size_t n : needed_by[i])
      if (--missing[n] == 0 && !excluded[n]) ready.push(n);
  }
  return order;
}

}  // namespace mq
