// Arguments of SQL functions, checked at the door: each getter throws an Error that names the field.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../message.hpp"
#include "fence.hpp"

namespace mq {

// For functions that write: 25006 in a READ ONLY transaction, and on a standby, where every transaction is.
void refuse_read_only(const char* function);

// An argument that may be NULL.
struct Value {
  Datum datum = 0;
  bool null = true;
};

inline Value argument(FunctionCallInfo fcinfo, int n) {
  return {PG_GETARG_DATUM(n), PG_ARGISNULL(n)};
}

std::string_view text_of(const Value& value, std::string_view field);
std::int32_t int_of(const Value& value, std::string_view field);
bool bool_of(const Value& value, std::string_view field);

// An interval as it reads, for error messages.
std::string interval_text(Datum interval);
// How long an interval is, counted from `from` by the calendar. Refuses NULL, negative and too long ones.
Micros interval_of(const Value& value, std::string_view field, Micros from);

// Elements of an array of texts or uuids that has no NULLs.
std::vector<Datum> elements(const Value& array, std::string_view field);
// Of an array of texts: sorted, each once.
std::vector<std::string> names_of(const Value& array, std::string_view field);
// A jsonb of a text. 22P02 or 22P05 where it is none that jsonb takes.
Datum json_of(std::string_view text, std::string_view field);

}  // namespace mq
