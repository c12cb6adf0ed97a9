// Bytes: takes values from the bytes of a fuzzer, and zeros when there are none left. And HOLDS, which
// says what does not hold and aborts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>

#define HOLDS(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (false)

namespace mq::fuzz {

class Bytes {
 public:
  explicit Bytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  bool empty() const { return bytes_.empty(); }
  std::size_t size() const { return bytes_.size(); }

  std::uint8_t byte() {
    if (bytes_.empty()) return 0;
    const std::uint8_t first = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return first;
  }

  // The next bytes as a number, the lowest first.
  std::int64_t number(int size = 8) {
    std::uint64_t value = 0;
    for (int i = 0; i < size; ++i) value |= std::uint64_t{byte()} << (8 * i);
    if (size < 8 && (value >> (8 * size - 1)) != 0) value -= std::uint64_t{1} << (8 * size);
    return static_cast<std::int64_t>(value);
  }

  // From 0 to `most`.
  int below(int most) { return byte() % (most + 1); }

  std::string_view text(std::size_t most) {
    const std::size_t size = most < bytes_.size() ? most : bytes_.size();
    const std::string_view taken(reinterpret_cast<const char*>(bytes_.data()), size);
    bytes_ = bytes_.subspan(size);
    return taken;
  }
  std::string_view rest() { return text(bytes_.size()); }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace mq::fuzz
