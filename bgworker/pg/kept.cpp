#include "pg/kept.hpp"

#include "pg/clean_text.hpp"
#include "pg/postgres.hpp"

extern "C" {
#include "mb/pg_wchar.h"
}

namespace mq {

std::string kept(std::string_view text) {
  const auto clip = [](std::string_view whole, std::size_t most, int) {
    // pg_mbcliplen() reads no more than it returns. The texts of a server fit into an int.
    return static_cast<std::size_t>(pg_mbcliplen(whole.data(), static_cast<int>(whole.size()), static_cast<int>(most)));
  };
  return kept_text(text, clip);
}

}  // namespace mq
