#include "pg/validate.hpp"

#include "pg/error.hpp"
#include "pg/format.hpp"

namespace mq::check {

std::string field_of(std::string_view field, std::optional<std::size_t> message) {
  return message ? mq::format("{} of message {}", field, *message) : std::string(field);
}

std::string element_of(std::string_view array, std::size_t element) {
  return mq::format("element {} of {}", element, array);
}

void fail_null(std::string_view field) {
  throw Error("22004", mq::format("{} must not be NULL", field));
}

void fail(std::string_view field, std::string_view value, std::string_view rule) {
  constexpr std::size_t kMostShown = 64;
  std::string shown(value.substr(0, kMostShown));
  if (value.size() > kMostShown) {
    // Cut between characters, since the error goes to a client that wants valid UTF-8.
    while (!shown.empty() && (static_cast<unsigned char>(value[shown.size()]) & 0xc0) == 0x80) shown.pop_back();
    shown += "...";
  }
  throw Error("22023", mq::format("invalid {}: \"{}\"", field, shown), mq::format("{} {}.", field, rule));
}

void name(std::string_view field, std::string_view value, std::size_t most_bytes) {
  if (value.size() > most_bytes)
    fail(field, value, mq::format("must not be longer than {} bytes; this has {}", most_bytes, value.size()));
}

void dedup_key(std::string_view field, std::string_view value, std::size_t channel_bytes) {
  name(field, value);
  if (value.size() + channel_bytes > kDedupBytes)
    fail(field, value,
         mq::format("must not be longer than {} bytes together with channel_name and channel_args; these have {}",
                    kDedupBytes, value.size() + channel_bytes));
}

void retries(std::string_view field, std::int64_t value) {
  count(field, value, 0, kMostRetries);
}

void priority(std::string_view field, std::int64_t value) {
  count(field, value, -kMostPriority, kMostPriority);
}

void duration(std::string_view field, std::string_view shown, Micros value, Micros most) {
  if (value < 0) fail(field, shown, "must not be negative");
  if (value > most) fail(field, shown, mq::format("must not be longer than {} days", most / (24LL * 3600 * kSecond)));
}

void positive(std::string_view field, std::string_view shown, Micros value, Micros most) {
  if (value <= 0) fail(field, shown, "must be greater than zero");
  duration(field, shown, value, most);
}

void count(std::string_view field, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least || value > most)
    fail(field, std::to_string(value), mq::format("must be between {} and {}", least, most));
}

void one_of(std::string_view field, std::string_view value, std::string_view a, std::string_view b) {
  if (value != a && value != b) fail(field, value, mq::format("must be \"{}\" or \"{}\"", a, b));
}

}  // namespace mq::check
