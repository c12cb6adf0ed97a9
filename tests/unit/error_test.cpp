#include "pg/error.hpp"

#include <gtest/gtest.h>

namespace mq {
namespace {

TEST(Error, SerializationFailureAndDeadlockAreConflicts) {
  EXPECT_TRUE(Error("40001", "").is_conflict());
  EXPECT_TRUE(Error("40P01", "").is_conflict());
}

TEST(Error, OtherRollbacksAndFailuresAreNoConflicts) {
  for (const char* state : {"40000", "40002", "40003", "23505", "55P03", "57014", "P0001", ""})
    EXPECT_FALSE(Error(state, "").is_conflict()) << state;
}

TEST(Error, SaysItsMessageAsAnException) {
  const Error error("22012", "division by zero", "detail", "hint");
  EXPECT_STREQ(error.what(), "division by zero");
  EXPECT_EQ(error.detail, "detail");
  EXPECT_EQ(error.hint, "hint");
}

}  // namespace
}  // namespace mq
