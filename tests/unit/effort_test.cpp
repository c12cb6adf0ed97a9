#include "queue/effort.hpp"

#include <gtest/gtest.h>

#include "fake_messages.hpp"

namespace mq {
namespace {

// How many things an effort is good for that take so much time each.
int things(Effort effort, fake::FakeClock& clock, Micros each) {
  int done = 0;
  for (; !effort.is_over(); ++done) {
    clock.time += each;
    effort.add();
  }
  return done;
}

TEST(Effort, EndsByNumberHoweverLongItTakes) {
  fake::FakeClock clock;
  EXPECT_EQ(things(Effort(500), clock, kSecond), 500);
  EXPECT_EQ(things(Effort(0), clock, kSecond), 0);
}

TEST(Effort, EndsByNumberWhereThereIsTime) {
  fake::FakeClock clock;
  EXPECT_EQ(things(Effort(clock, 50, 4, 25), clock, 1), 25);
}

TEST(Effort, EndsByTime) {
  fake::FakeClock clock;
  EXPECT_EQ(things(Effort(clock, 50, 4, 25), clock, 5), 10);
}

TEST(Effort, DoesTheLeastAfterItsTime) {
  fake::FakeClock clock;
  EXPECT_EQ(things(Effort(clock, 50, 4, 25), clock, kSecond), 4);
  EXPECT_EQ(things(Effort(clock, 0, 1, 1), clock, kSecond), 1);
}

}  // namespace
}  // namespace mq
