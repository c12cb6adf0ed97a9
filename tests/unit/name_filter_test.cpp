#include "shmem/name_filter.hpp"

#include <gtest/gtest.h>

#include <string>

#include "shmem/channel_key.hpp"

namespace mq {
namespace {

TEST(NameFilter, KnowsItsMembers) {
  NameFilter filter;
  EXPECT_FALSE(filter.may_have(channel_key("mail", {})));
  for (int i = 0; i < 1000; ++i) {
    const std::int64_t key = channel_key("channel " + std::to_string(i), {});
    filter.add(key);
    EXPECT_TRUE(filter.may_have(key));
  }
}

TEST(NameFilter, TakesFewOthersForMembers) {
  NameFilter filter;
  for (int i = 0; i < 16; ++i) filter.add(channel_key("handled " + std::to_string(i), {}));
  int taken = 0;
  for (int i = 0; i < 1000; ++i)
    if (filter.may_have(channel_key("other " + std::to_string(i), {}))) ++taken;
  EXPECT_LT(taken, 100);  // 16 of 512 bits: about 31
}

}  // namespace
}  // namespace mq
