#include "pg/clean_text.hpp"

#include "pg/format.hpp"

namespace mq {

std::string kept_text(std::string_view text, ClipText clip, int encoding) {
  if (text.size() <= kMostKept) return std::string(text);
  const std::string note = mq::format(" ... (cut, {} bytes)", text.size());
  std::string kept(text.substr(0, clip(text, kMostKept - note.size(), encoding)));
  return kept += note;
}

}  // namespace mq
