// Topological order. Pure; mq_redrive (api/dead_letters.cpp) calls it.
#pragma once

#include <cstddef>
#include <vector>

namespace mq {

// Orders the nodes 0, 1, … so that each comes behind those that it needs; where that leaves a choice the
// least number comes first. `needs` has for each node the nodes that it needs. Leaves out nodes with
// `excluded`, the members of cycles, and what needs one of those.
std::vector<std::size_t> topological_order(const std::vector<std::vector<std::size_t>>& needs,
                                           const std::vector<bool>& excluded);

}  // namespace mq
