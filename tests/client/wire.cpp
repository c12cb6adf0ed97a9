#include "wire.hpp"

#include <algorithm>
#include <random>
#include <stdexcept>

namespace client {

namespace {

template <class Integer>
void put(std::string& bytes, Integer value) {
  for (int shift = 8 * (static_cast<int>(sizeof value) - 1); shift >= 0; shift -= 8)
    bytes.push_back(static_cast<char>(static_cast<std::uint64_t>(value) >> shift & 0xff));
}

std::int64_t get(std::string_view bytes, std::size_t at, std::size_t size) {
  std::uint64_t value = (bytes[at] & 0x80) != 0 ? ~std::uint64_t{0} : 0;
  for (std::size_t i = 0; i < size; ++i) value = value << 8 | static_cast<std::uint8_t>(bytes[at + i]);
  return static_cast<std::int64_t>(value);
}

void expect_size(std::string_view bytes, std::size_t size, const char* type) {
  if (bytes.size() != size)
    throw std::runtime_error(std::string(type) + " of " + std::to_string(bytes.size()) + " bytes");
}

// One dimension, no NULLs.
Param array_of(Type array, Type element, const std::vector<std::string>& values) {
  std::string bytes;
  put<std::int32_t>(bytes, values.empty() ? 0 : 1);
  put<std::int32_t>(bytes, 0);
  put<std::int32_t>(bytes, static_cast<std::int32_t>(element));
  if (!values.empty()) {
    put<std::int32_t>(bytes, static_cast<std::int32_t>(values.size()));
    put<std::int32_t>(bytes, 1);
  }
  for (const std::string& value : values) {
    put<std::int32_t>(bytes, static_cast<std::int32_t>(value.size()));
    bytes += value;
  }
  return {array, bytes};
}

std::string bytes_of(const Id& id) {
  return {id.begin(), id.end()};
}

}  // namespace

Id new_id() {
  thread_local std::mt19937_64 random{std::random_device{}()};
  Id id;
  for (std::uint8_t& byte : id) byte = static_cast<std::uint8_t>(random());
  id[6] = (id[6] & 0x0f) | 0x40;
  id[8] = (id[8] & 0x3f) | 0x80;
  return id;
}

std::string to_string(const Id& id) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string result;
  for (std::size_t i = 0; i < id.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) result += '-';
    result += kDigits[id[i] >> 4];
    result += kDigits[id[i] & 15];
  }
  return result;
}

std::string name_of(Type type) {
  switch (type) {
    case kBool:
      return "bool";
    case kBytea:
      return "bytea";
    case kInt8:
      return "int8";
    case kInt4:
      return "int4";
    case kText:
      return "text";
    case kTextArray:
      return "text[]";
    case kInterval:
      return "interval";
    case kUuid:
      return "uuid";
    case kUuidArray:
      return "uuid[]";
  }
  return "type " + std::to_string(type);
}

Param uuid(const Id& id) {
  return {kUuid, bytes_of(id)};
}

Param uuids(const Ids& ids) {
  std::vector<std::string> values;
  for (const Id& id : ids) values.push_back(bytes_of(id));
  return array_of(kUuidArray, kUuid, values);
}

Param interval(std::optional<Micros> length) {
  if (!length) return {kInterval, std::nullopt};
  std::string bytes;
  put<std::int64_t>(bytes, length->count());
  put<std::int32_t>(bytes, 0);  // days
  put<std::int32_t>(bytes, 0);  // months
  return {kInterval, bytes};
}

Param int4(std::int32_t value) {
  std::string bytes;
  put(bytes, value);
  return {kInt4, bytes};
}

Param int8(std::int64_t value) {
  std::string bytes;
  put(bytes, value);
  return {kInt8, bytes};
}

Param boolean(bool value) {
  return {kBool, std::string(1, value ? '\1' : '\0')};
}

Param text(std::optional<std::string> value) {
  return {kText, std::move(value)};
}

Param texts(const std::optional<Names>& values) {
  if (!values) return {kTextArray, std::nullopt};
  return array_of(kTextArray, kText, *values);
}

Param bytea(std::optional<std::string> value) {
  return {kBytea, std::move(value)};
}

Id read_uuid(std::string_view bytes) {
  Id id;
  expect_size(bytes, id.size(), "uuid");
  std::copy(bytes.begin(), bytes.end(), id.begin());
  return id;
}

Micros read_interval(std::string_view bytes) {
  constexpr std::chrono::days kMonth{30};
  expect_size(bytes, 16, "interval");
  return Micros(get(bytes, 0, 8)) + std::chrono::days(get(bytes, 8, 4)) + kMonth * get(bytes, 12, 4);
}

bool read_bool(std::string_view bytes) {
  expect_size(bytes, 1, "bool");
  return bytes[0] != '\0';
}

std::int64_t read_int8(std::string_view bytes) {
  expect_size(bytes, 8, "int8");
  return get(bytes, 0, 8);
}

}  // namespace client
