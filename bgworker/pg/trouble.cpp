#include "pg/trouble.hpp"

#include <algorithm>

#include "pg/format.hpp"

namespace mq {

void Backoff::failed(Micros now) {
  until_ = now + std::min(kLongestPause, kSecond << std::min(failures_, 10));
  ++failures_;
}

std::optional<std::string> TroubleLog::line(const Error& error, Micros now) {
  std::erase_if(kinds_, [&](const auto& kind) { return now - kind.second.seen_at > kForget; });
  std::string key = error.sqlstate + error.message;
  if (!kinds_.contains(key) && kinds_.size() >= kMostKinds) key = error.sqlstate;
  const auto [found, is_new] = kinds_.try_emplace(key);
  Kind& kind = found->second;
  kind.seen_at = now;
  const std::string text = mq::format("{} (SQLSTATE {})", error.message, error.sqlstate);
  if (is_new) {
    kind.told_at = now;
    return text;
  }
  ++kind.times;
  if (now - kind.told_at < kind.repeat_after) return std::nullopt;
  std::string line = mq::format("{}, repeated {} times", text, kind.times);
  kind.told_at = now;
  kind.times = 0;
  kind.repeat_after = std::min(kind.repeat_after * 2, kLastRepeat);
  return line;
}

}  // namespace mq
