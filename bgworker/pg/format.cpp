#define FMT_HEADER_ONLY
#include "pg/format.hpp"

#include <fmt/format.h>

namespace mq {

std::string vformat(fmt::string_view text, fmt::format_args args) {
  return fmt::vformat(text, args);
}

}  // namespace mq
