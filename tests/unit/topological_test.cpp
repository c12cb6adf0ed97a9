#include "queue/topological.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace mq {
namespace {

using Needs = std::vector<std::vector<std::size_t>>;
using Order = std::vector<std::size_t>;

Order order_of(const Needs& needs, std::vector<bool> excluded = {}) {
  excluded.resize(needs.size(), false);
  return topological_order(needs, excluded);
}

TEST(TopologicalOrder, KeepsTheOrderOfNodesThatNeedNothing) {
  EXPECT_EQ(order_of({}), Order());
  EXPECT_EQ(order_of({{}, {}, {}}), (Order{0, 1, 2}));
  EXPECT_EQ(order_of({{}, {0}, {0, 1}, {}}), (Order{0, 1, 2, 3}));
}

TEST(TopologicalOrder, PutsEachNodeBehindThoseThatItNeeds) {
  EXPECT_EQ(order_of({{1}, {2}, {3}, {}}), (Order{3, 2, 1, 0}));
  EXPECT_EQ(order_of({{3}, {0}, {0, 1}, {}}), (Order{3, 0, 1, 2}));
  EXPECT_EQ(order_of({{1, 1}, {}}), (Order{1, 0}));
}

TEST(TopologicalOrder, LeavesOutCyclesAndWhatNeedsThem) {
  EXPECT_EQ(order_of({{0}, {}}), Order{1});
  EXPECT_EQ(order_of({{1}, {0}, {1}, {2}, {}}), Order{4});
  EXPECT_EQ(order_of({{4}, {0}, {1}, {}, {2, 3}}), Order{3});
}

TEST(TopologicalOrder, LeavesOutExcludedNodesAndWhatNeedsThem) {
  EXPECT_EQ(order_of({{}, {0}, {1}, {}}, {true}), Order{3});
  EXPECT_EQ(order_of({{1}, {}, {}}, {true}), (Order{1, 2}));
}

TEST(TopologicalOrder, OrdersLongChainsAndRandomGraphs) {
  constexpr std::size_t kNodes = 100'000;
  Needs chain(kNodes);
  for (std::size_t i = 0; i + 1 < kNodes; ++i) chain[i].push_back(i + 1);
  const Order reversed = order_of(chain);
  ASSERT_EQ(reversed.size(), kNodes);
  EXPECT_EQ(reversed.front(), kNodes - 1);
  std::mt19937 random(7);
  Needs needs(1000);
  for (std::size_t i = 1; i < needs.size(); ++i)
    for (int n = 0; n < 5; ++n) needs[i].push_back(random() % i);
  const Order order = order_of(needs);
  ASSERT_EQ(order.size(), needs.size());
  std::vector<std::size_t> at(needs.size());
  for (std::size_t i = 0; i < order.size(); ++i) at[order[i]] = i;
  for (std::size_t i = 0; i < needs.size(); ++i)
    for (const std::size_t n : needs[i]) EXPECT_LT(at[n], at[i]);
}

}  // namespace
}  // namespace mq
