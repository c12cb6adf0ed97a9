// Limits texts to the length that is kept (clean_text.hpp), in the encoding of the database. The pg
// guard, settle and mq_discard call it. No state.
#pragma once

#include <string>
#include <string_view>

namespace mq {

std::string kept(std::string_view text);

}  // namespace mq
