// InFlightRecord: what a start of the server makes of the in-flight file.
#include "shmem/in_flight_record.hpp"

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

namespace mq::in_flight {
namespace {

Record record(std::int32_t end, std::int32_t messages = 1, Oid database = 5) {
  return {database, messages, Uuid{}, 0, 10, end};
}

std::string file_of(std::initializer_list<Record> records) {
  std::string file;
  for (const Record& r : records) file.append(reinterpret_cast<const char*>(&r), sizeof r);
  return file;
}

TEST(InFlightRecord, ACrashOfItsOwnIsCharged) {
  const auto calls = unfinished_calls(file_of({record(kSignal + 11, 3)}), false);
  ASSERT_EQ(calls.size(), 1);
  EXPECT_EQ(calls[0].reason, AbortReason::kCrash);
  EXPECT_EQ(calls[0].record.messages, 3);
}

TEST(InFlightRecord, AKillIsChargedUnderTheSamePostmasterOnly) {
  const std::string file = file_of({record(kRunning)});
  EXPECT_TRUE(unfinished_calls(file, false).empty());
  const auto calls = unfinished_calls(file, true);
  ASSERT_EQ(calls.size(), 1);
  EXPECT_EQ(calls[0].reason, AbortReason::kKilled);
}

TEST(InFlightRecord, WhatWasToldToEndOrEndedInOrderOrHasNotBegunIsNotCharged) {
  EXPECT_TRUE(
      unfinished_calls(file_of({record(kTold), record(kExited), record(kEntered), record(kSignal + 11, 1, InvalidOid)}),
                       true)
          .empty());
}

TEST(InFlightRecord, ADamagedFileChargesNobody) {
  EXPECT_TRUE(unfinished_calls(file_of({record(kSignal), record(kSignal + 65), record(-1), record(INT32_MAX),
                                        record(INT32_MIN), record(kRunning, 0), record(kRunning, -1)}),
                               true)
                  .empty());
}

TEST(InFlightRecord, ARecordThatIsCutOffIsLeftOut) {
  const std::string file = file_of({record(kSignal + 6), record(kSignal + 11)});
  EXPECT_EQ(unfinished_calls(std::string_view(file).substr(0, file.size() - 1), true).size(), 1);
  EXPECT_TRUE(unfinished_calls("", true).empty());
}

}  // namespace
}  // namespace mq::in_flight
