// Arguments of SQL functions. Each getter validates its argument, and throws an Error that names
// the field. The SQL functions (api/, mq_run, mq_enable) call them. No state.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pg/guard.hpp"
#include "pg/types.hpp"

namespace mq {

// For functions that write: throws 25006 in a READ ONLY transaction. On a standby every one is.
void refuse_read_only(const char* function);

// An argument that may be NULL.
struct Value {
  Datum datum = 0;
  bool null = true;
};

inline Value argument(FunctionCallInfo fcinfo, int n) {
  return {PG_GETARG_DATUM(n), PG_ARGISNULL(n)};
}

// Throw 22004 for NULL.
std::string_view text_of(const Value& value, std::string_view field);
std::int32_t int_of(const Value& value, std::string_view field);
bool bool_of(const Value& value, std::string_view field);

// As text, for error messages.
std::string interval_text(Datum interval);
std::string timestamp_text(Micros at);
// How long the interval is in µs, counted from `from` by the calendar. Throws 22004 for NULL, 22023
// for an interval that is negative or longer than check::kLongest.
Micros interval_of(const Value& value, std::string_view field, Micros from);

struct Elements {
  Datum* values;
  bool* nulls;
  int count;
};
Elements elements_of(Datum array);

// The elements of an array. Throws 22004 if it is NULL or has a NULL.
std::vector<Datum> elements(const Value& array, std::string_view field);
// The elements of an array of texts, sorted, each once. Throws as elements() does.
std::vector<std::string> names_of(const Value& array, std::string_view field);
// The text as a jsonb. Throws 22P02 or 22P05 if jsonb does not accept it.
Datum json_of(std::string_view text, std::string_view field);

}  // namespace mq
