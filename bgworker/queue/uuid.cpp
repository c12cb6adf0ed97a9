#include "queue/uuid.hpp"

#include <algorithm>

namespace mq {

Uuid uuid_v7(std::int64_t unix_milliseconds, const std::array<std::uint8_t, 10>& random) {
  Uuid id;
  for (int i = 0; i < 6; ++i) id.bytes[i] = static_cast<std::uint8_t>(unix_milliseconds >> (40 - 8 * i));
  std::copy(random.begin(), random.end(), id.bytes.begin() + 6);
  id.bytes[6] = static_cast<std::uint8_t>(0x70 | (id.bytes[6] & 0x0f));  // the version
  id.bytes[8] = static_cast<std::uint8_t>(0x80 | (id.bytes[8] & 0x3f));  // the variant
  return id;
}

std::optional<Uuid> uuid_behind(const Uuid& id, std::uint32_t step) {
  constexpr std::uint64_t kRandom = (std::uint64_t{1} << 62) - 1;  // behind the variant
  std::uint64_t low = 0;
  for (int i = 8; i < 16; ++i) low = low << 8 | id.bytes[i];
  if ((low & kRandom) + step >= kRandom) return std::nullopt;
  low += std::uint64_t{step} + 1;
  Uuid behind = id;
  for (int i = 15; i >= 8; --i, low >>= 8) behind.bytes[i] = static_cast<std::uint8_t>(low);
  return behind;
}

std::string uuid_text(const Uuid& id) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (std::size_t i = 0; i < id.bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kDigits[id.bytes[i] >> 4];
    text += kDigits[id.bytes[i] & 0x0f];
  }
  return text;
}

}  // namespace mq
