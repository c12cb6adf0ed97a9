// Values in the server's binary format, with their types: the original's clients bind and read all of theirs so.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace client {

// Oids of the types that the statements bind and return.
enum Type : unsigned {
  kBool = 16,
  kBytea = 17,
  kInt8 = 20,
  kInt4 = 23,
  kText = 25,
  kTextArray = 1009,
  kInterval = 1186,
  kUuid = 2950,
  kUuidArray = 2951,
};

using Id = std::array<std::uint8_t, 16>;
using Ids = std::vector<Id>;
using Names = std::vector<std::string>;
using Micros = std::chrono::microseconds;

Id new_id();  // random
std::string to_string(const Id& id);
std::string name_of(Type type);

// A value to be bound; without bytes it is NULL.
struct Param {
  Type type;
  std::optional<std::string> bytes;
};

Param uuid(const Id& id);
Param uuids(const Ids& ids);
Param interval(std::optional<Micros> length);
Param int4(std::int32_t value);
Param int8(std::int64_t value);
Param boolean(bool value);
Param text(std::optional<std::string> value);
Param texts(const std::optional<Names>& values);
Param bytea(std::optional<std::string> value);

// What was read; each throws std::runtime_error if the bytes are no value of the type.
Id read_uuid(std::string_view bytes);
Micros read_interval(std::string_view bytes);
bool read_bool(std::string_view bytes);
std::int64_t read_int8(std::string_view bytes);

}  // namespace client
