#include "shmem/channel_key.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <string>

namespace mq {

std::int64_t channel_key(std::string_view channel_name, std::string_view channel_args) {
  const auto length = static_cast<std::uint32_t>(channel_name.size());
  std::string text;
  text.reserve(4 + channel_name.size() + channel_args.size());
  for (int shift = 0; shift < 32; shift += 8) text.push_back(static_cast<char>(length >> shift & 0xff));
  text.append(channel_name).append(channel_args);
  return static_cast<std::int64_t>(XXH3_64bits(text.data(), text.size()));
}

std::uint64_t seeded_key(std::string_view text, std::uint64_t seed) {
  return XXH3_64bits_withSeed(text.data(), text.size(), seed);
}

}  // namespace mq
