#include "pg/validate.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "pg/error.hpp"

namespace mq::check {
namespace {

constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

// What `check` throws; sqlstate "00000" if it lets the value pass.
template <typename Validate>
Error error_of(Validate check) {
  try {
    check();
  } catch (const Error& error) {
    return error;
  }
  return {"00000", ""};
}

TEST(Validate, SaysWhichMessageOfAnArrayIsMeant) {
  EXPECT_EQ(field_of("retries"), "retries");
  EXPECT_EQ(field_of("retries", 3), "retries of message 3");
}

TEST(Validate, RefusesNullByTheNameOfTheField) {
  const Error error = error_of([] { fail_null("channel_name"); });
  EXPECT_EQ(error.sqlstate, "22004");
  EXPECT_EQ(error.message, "channel_name must not be NULL");
}

TEST(Validate, NamesTheFieldTheValueAndTheRule) {
  const Error error = error_of([] { retries("retries of message 2", -1); });
  EXPECT_EQ(error.sqlstate, "22023");
  EXPECT_EQ(error.message, "invalid retries of message 2: \"-1\"");
  EXPECT_EQ(error.detail, "retries of message 2 must be between 0 and 2147483646.");
}

TEST(Validate, ShowsAShortValueInFull) {
  const std::string value(64, 'x');
  EXPECT_EQ(error_of([&] { fail("f", value, "r"); }).message, "invalid f: \"" + value + "\"");
}

TEST(Validate, CutsALongValue) {
  const std::string value(65, 'x');
  EXPECT_EQ(error_of([&] { fail("f", value, "r"); }).message, "invalid f: \"" + value.substr(0, 64) + "...\"");
}

TEST(Validate, CutsALongValueBetweenCharacters) {
  for (const std::string character : {"\xc3\xbc", "\xe2\x82\xac", "\xf0\x9f\x90\x98"}) {
    for (std::size_t before = 0; before < 4; ++before) {
      std::string value(before, 'x');
      while (value.size() <= 80) value += character;
      std::string shown = error_of([&] { fail("f", value, "r"); }).message.substr(12);
      shown.resize(shown.size() - 4);
      EXPECT_LE(shown.size(), 64U);
      EXPECT_GT(shown.size(), 60U);
      EXPECT_EQ((shown.size() - before) % character.size(), 0U) << shown;
    }
  }
}

TEST(Validate, SurvivesAValueThatIsNoText) {
  const std::string value(100, '\x80');
  EXPECT_EQ(error_of([&] { fail("f", value, "r"); }).message, "invalid f: \"...\"");
}

TEST(Validate, BoundsNamesInBytes) {
  EXPECT_NO_THROW(name("channel_name", ""));
  EXPECT_NO_THROW(name("channel_name", std::string(kNameBytes, 'n')));
  const Error error = error_of([] { name("channel_name", std::string(kNameBytes + 1, 'n')); });
  EXPECT_EQ(error.sqlstate, "22023");
  EXPECT_EQ(error.detail, "channel_name must not be longer than 1024 bytes; this has 1025.");
  EXPECT_NO_THROW(name("channel_args", std::string(kArgsBytes, 'a'), kArgsBytes));
  EXPECT_THROW(name("channel_args", std::string(kArgsBytes + 1, 'a'), kArgsBytes), Error);
}

TEST(Validate, BoundsADedupKeyAloneAndTogetherWithItsChannel) {
  EXPECT_NO_THROW(dedup_key("dedup_key", "", 0));
  EXPECT_NO_THROW(dedup_key("dedup_key", std::string(1024, 'k'), kDedupBytes - 1024));
  EXPECT_EQ(error_of([] { dedup_key("dedup_key", std::string(1025, 'k'), 0); }).detail,
            "dedup_key must not be longer than 1024 bytes; this has 1025.");
  const Error error = error_of([] { dedup_key("dedup_key", "key", kDedupBytes - 2); });
  EXPECT_EQ(error.sqlstate, "22023");
  EXPECT_EQ(error.message, "invalid dedup_key: \"key\"");
  EXPECT_EQ(
      error.detail,
      "dedup_key must not be longer than 2600 bytes together with channel_name and channel_args; these have 2601.");
}

TEST(Validate, LeavesRoomForOneAttemptMoreThanRetries) {
  EXPECT_NO_THROW(retries("retries", 0));
  EXPECT_NO_THROW(retries("retries", 2'147'483'646));
  EXPECT_THROW(retries("retries", 2'147'483'647), Error);
  EXPECT_THROW(retries("retries", kLeast), Error);
}

TEST(Validate, BoundsDurations) {
  EXPECT_NO_THROW(duration("delay", "0", 0));
  EXPECT_NO_THROW(duration("delay", "100 years", kLongest));
  const Error negative = error_of([] { duration("delay", "-1 second", -kSecond); });
  EXPECT_EQ(negative.sqlstate, "22023");
  EXPECT_EQ(negative.message, "invalid delay: \"-1 second\"");
  EXPECT_EQ(negative.detail, "delay must not be negative.");
  const Error long_one = error_of([] { duration("delay", "a million years", kLongest + 1); });
  EXPECT_EQ(long_one.sqlstate, "22023");
  EXPECT_EQ(long_one.detail, "delay must not be longer than 36500 days.");
  EXPECT_THROW(duration("delay", "", kLeast), Error);
  EXPECT_THROW(duration("delay", "", kMost), Error);
  EXPECT_THROW(duration("delay", "2 seconds", 2 * kSecond, kSecond), Error);
}

TEST(Validate, WantsSomeDurationsGreaterThanZero) {
  EXPECT_NO_THROW(positive("timeout", "1 us", 1));
  EXPECT_EQ(error_of([] { positive("timeout", "0", 0); }).detail, "timeout must be greater than zero.");
  EXPECT_THROW(positive("timeout", "", kLeast), Error);
  EXPECT_THROW(positive("timeout", "", kLongest + 1), Error);
}

TEST(Validate, BoundsCountsOnBothSides) {
  EXPECT_NO_THROW(count("batch_size", 1, 1, 100));
  EXPECT_NO_THROW(count("batch_size", 100, 1, 100));
  EXPECT_EQ(error_of([] { count("batch_size", 0, 1, 100); }).detail, "batch_size must be between 1 and 100.");
  EXPECT_EQ(error_of([] { count("batch_size", 101, 1, 100); }).message, "invalid batch_size: \"101\"");
  EXPECT_NO_THROW(count("max_messages", kMost, 0, kMost));
}

TEST(Validate, OffersTheTwoWordsThereAre) {
  EXPECT_NO_THROW(one_of("on_dead", "skip", "skip", "block"));
  EXPECT_NO_THROW(one_of("on_dead", "block", "skip", "block"));
  const Error error = error_of([] { one_of("on_dead", "Skip", "skip", "block"); });
  EXPECT_EQ(error.sqlstate, "22023");
  EXPECT_EQ(error.detail, "on_dead must be \"skip\" or \"block\".");
}

}  // namespace
}  // namespace mq::check
