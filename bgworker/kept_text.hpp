// Texts that are kept in mq_failures and mq_dead are bounded: an error may quote a payload of any size.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mq {

inline constexpr std::size_t kMostKept = 8192;  // bytes of a text, with the note that it was cut

// How many bytes of `text`, at most `most`, are whole characters; `text` is longer than that.
using ClipText = std::size_t (*)(std::string_view text, std::size_t most, int encoding);

// `text`, or its beginning and how long it was.
std::string kept_text(std::string_view text, ClipText clip, int encoding = 0);

}  // namespace mq
