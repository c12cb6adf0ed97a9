// Limits the length of texts that are kept in mq_failures and mq_dead, since an error may quote a
// payload of any size. Pure; pg/kept.hpp and leased/pq_session.cpp call it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mq {

inline constexpr std::size_t kMostKept = 8192;  // bytes, the note that the text was cut included

// How many bytes of `text` are whole characters, at most `most`. `text` is longer than `most`.
using ClipText = std::size_t (*)(std::string_view text, std::size_t most, int encoding);

// `text`; if that is longer than kMostKept, its beginning and a note of its length.
std::string kept_text(std::string_view text, ClipText clip, int encoding = 0);

}  // namespace mq
