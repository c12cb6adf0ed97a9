// Format: texts by fmt's format strings, which the compiler checks. No state.
//
// Most of fmt is compiled in one file (format.cpp), as a part of the library, so the server need
// not find libfmt when it loads mq.
#pragma once

#include <fmt/core.h>

#include <string>

namespace mq {

std::string vformat(fmt::string_view text, fmt::format_args args);

template <typename... T>
std::string format(fmt::format_string<T...> text, T&&... args) {
  return mq::vformat(text, fmt::make_format_args(args...));
}

}  // namespace mq
