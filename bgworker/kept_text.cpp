#include "kept_text.hpp"

#include <fmt/core.h>

namespace mq {

std::string kept_text(std::string_view text, ClipText clip, int encoding) {
  if (text.size() <= kMostKept) return std::string(text);
  const std::string note = fmt::format(" ... (cut, {} bytes)", text.size());
  std::string kept(text.substr(0, clip(text, kMostKept - note.size(), encoding)));
  return kept += note;
}

}  // namespace mq
