// Promote: makes messages the heads of their ordered channels, straight in the table. head_links.cpp
// uses it, for every batch of ordered channels. No state.
#pragma once

#include <optional>
#include <vector>

#include "queue/due_scan.hpp"

namespace mq {

// Makes each of the messages a head, unless another session has locked or changed it since it was
// found. Returns which are. None: a statement has to ask triggers, rules or policies, and nothing was
// written. Needs an OwnerScope.
std::optional<std::vector<char>> promote(const std::vector<const FirstMessage*>& messages);

}  // namespace mq
