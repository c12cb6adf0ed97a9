// Packed texts: several texts as one, which may hold anything. Pure; queue/call_settings.cpp sends them to
// the sessions of leased calls and to parallel workers.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace mq {

// Each text with its length before it: "3:abc0:".
std::string packed(std::span<const std::string> texts);

// Fills `texts` with what packed() was given. From where the text is not of that form they stay as they are.
void unpack(std::string_view text, std::span<std::string> texts);

}  // namespace mq
