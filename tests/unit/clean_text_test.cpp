#include "pg/clean_text.hpp"

#include <gtest/gtest.h>

namespace mq {
namespace {

std::size_t pairs(std::string_view, std::size_t most, int) {
  return most / 2 * 2;
}

TEST(CleanText, ShortOnesAreKeptWhole) {
  EXPECT_EQ(kept_text("", pairs), "");
  EXPECT_EQ(kept_text("no such table", pairs), "no such table");
  const std::string longest(kMostKept, 'x');
  EXPECT_EQ(kept_text(longest, pairs), longest);
}

TEST(CleanText, LongOnesAreCutBetweenCharactersAndSayHowLongTheyWere) {
  const std::string kept = kept_text(std::string(20'000'001, 'x'), pairs);
  const std::string note = " ... (cut, 20000001 bytes)";
  EXPECT_LE(kept.size(), kMostKept);
  EXPECT_GT(kept.size(), kMostKept - 2);
  ASSERT_TRUE(kept.ends_with(note));
  EXPECT_EQ((kept.size() - note.size()) % 2, 0U);
}

}  // namespace
}  // namespace mq
