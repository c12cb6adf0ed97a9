#include "queue/uuid.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>
#include <unordered_set>

namespace mq {
namespace {

using Random = std::array<std::uint8_t, 10>;

Random filled(std::uint8_t byte) {
  Random random;
  random.fill(byte);
  return random;
}

// The example of RFC 9562, appendix A.6.
TEST(UuidV7, IsThatOfTheStandard) {
  const Random random{0x0c, 0xc3, 0x18, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f};
  const Uuid expected{{0x01, 0x7f, 0x22, 0xe2, 0x79, 0xb0, 0x7c, 0xc3, 0x98, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f}};
  EXPECT_EQ(uuid_v7(0x017f22e279b0, random), expected);
}

TEST(UuidV7, CarriesVersionAndVariantWhateverTheRandomBits) {
  for (int byte = 0; byte < 256; ++byte) {
    const Uuid id = uuid_v7(1'700'000'000'000, filled(static_cast<std::uint8_t>(byte)));
    EXPECT_EQ(id.bytes[6] >> 4, 7);
    EXPECT_EQ(id.bytes[8] >> 6, 2);
  }
}

TEST(UuidV7, KeepsSeventyFourRandomBits) {
  const Uuid zeros = uuid_v7(0, filled(0x00));
  const Uuid ones = uuid_v7(0, filled(0xff));
  int differing = 0;
  for (std::size_t i = 0; i < 16; ++i) differing += __builtin_popcount(zeros.bytes[i] ^ ones.bytes[i]);
  EXPECT_EQ(differing, 74);
}

TEST(UuidV7, SortsByTimeBeforeAllElse) {
  std::int64_t before = 0;
  for (const std::int64_t later :
       {1LL, 255LL, 256LL, 65'536LL, 1'700'000'000'000LL, 1'700'000'000'001LL, 0xffffffffffffLL}) {
    EXPECT_LT(uuid_v7(before, filled(0xff)), uuid_v7(later, filled(0x00)));
    before = later;
  }
}

TEST(UuidV7, GoesOnInTheSameMillisecond) {
  const Uuid first = uuid_v7(1'700'000'000'000, filled(0x00));
  const std::optional<Uuid> next = uuid_behind(first, 0);
  ASSERT_TRUE(next);
  EXPECT_LT(first, *next);
  EXPECT_EQ(next->bytes[15], 1);
  const std::optional<Uuid> far = uuid_behind(*next, 0xffffffff);
  ASSERT_TRUE(far);
  EXPECT_LT(*next, *far);
  EXPECT_EQ(far->bytes[11], 1);  // 1 + 2^32
  EXPECT_EQ(far->bytes[15], 1);
  EXPECT_EQ(far->bytes[6] >> 4, 7);
  EXPECT_EQ(far->bytes[8] >> 6, 2);
}

TEST(UuidV7, EndsWithTheMillisecond) {
  Random random = filled(0xff);
  random[9] = 0xfe;
  const Uuid last_but_one = uuid_v7(1'700'000'000'000, random);
  EXPECT_FALSE(uuid_behind(last_but_one, 1));
  const std::optional<Uuid> last = uuid_behind(last_but_one, 0);
  ASSERT_TRUE(last);
  EXPECT_EQ(*last, uuid_v7(1'700'000'000'000, filled(0xff)));
  EXPECT_FALSE(uuid_behind(*last, 0));
}

TEST(UuidV7, IsSpreadByTheHash) {
  std::unordered_set<std::size_t> hashes;
  for (int i = 0; i < 256; ++i) {
    Random random = filled(0);
    random[9] = static_cast<std::uint8_t>(i);
    hashes.insert(UuidHash()(uuid_v7(1'700'000'000'000, random)));
  }
  EXPECT_EQ(hashes.size(), 256U);
}

TEST(UuidText, IsThatOfTheServer) {
  const Uuid id{{0x01, 0x7f, 0x22, 0xe2, 0x79, 0xb0, 0x7c, 0xc3, 0x98, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f}};
  EXPECT_EQ(uuid_text(id), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
  EXPECT_EQ(uuid_text(Uuid()), "00000000-0000-0000-0000-000000000000");
}

}  // namespace
}  // namespace mq
