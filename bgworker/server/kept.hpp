// Texts to be kept, in the encoding of the database. See kept_text.hpp.
#pragma once

#include <string>
#include <string_view>

namespace mq {

std::string kept(std::string_view text);

}  // namespace mq
