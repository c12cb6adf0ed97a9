#include "pg/packed.hpp"

#include <charconv>

namespace mq {

std::string packed(std::span<const std::string> texts) {
  std::string result;
  for (const std::string& text : texts) result += std::to_string(text.size()) + ':' + text;
  return result;
}

void unpack(std::string_view text, std::span<std::string> texts) {
  for (std::string& value : texts) {
    std::size_t length = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
    if (error != std::errc() || end == text.data() + text.size() || *end != ':') return;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()) + 1);
    if (length > text.size()) return;
    value = text.substr(0, length);
    text.remove_prefix(length);
  }
}

}  // namespace mq
