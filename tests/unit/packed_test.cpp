// Packed texts: what comes out is what went in, and what is malformed is left.
#include "pg/packed.hpp"

#include <gtest/gtest.h>

#include <array>

namespace mq {
namespace {

using Texts = std::array<std::string, 3>;

Texts unpacked(std::string_view text) {
  Texts texts;
  unpack(text, texts);
  return texts;
}

TEST(Packed, TextsMayHoldAnything) {
  const Texts texts{"", "5:x", std::string("a\0:9", 4)};
  EXPECT_EQ(unpacked(packed(texts)), texts);
  EXPECT_EQ(packed(Texts{"abc", "", "x"}), "3:abc0:1:x");
}

TEST(Packed, WhatIsMalformedIsLeft) {
  EXPECT_EQ(unpacked(""), Texts());
  EXPECT_EQ(unpacked("1:a7"), (Texts{"a", "", ""}));
  EXPECT_EQ(unpacked("1:a7:x"), (Texts{"a", "", ""}));
  EXPECT_EQ(unpacked("1:a1x"), (Texts{"a", "", ""}));
  EXPECT_EQ(unpacked("99999999999999999999:a"), Texts());
  EXPECT_EQ(unpacked("-1:a"), Texts());
}

}  // namespace
}  // namespace mq
