#include "pg/arguments.hpp"

#include <algorithm>

#include "pg/format.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"

extern "C" {
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/uuid.h"
}

namespace mq {

void refuse_read_only(const char* function) {
  if (XactReadOnly) guard::call([&] { PreventCommandIfReadOnly(function); });
}

std::string_view text_of(const Value& value, std::string_view field) {
  if (value.null) check::fail_null(field);
  return text_view(value.datum);
}

std::int32_t int_of(const Value& value, std::string_view field) {
  if (value.null) check::fail_null(field);
  return DatumGetInt32(value.datum);
}

bool bool_of(const Value& value, std::string_view field) {
  if (value.null) check::fail_null(field);
  return DatumGetBool(value.datum);
}

std::string interval_text(Datum interval) {
  return guard::call([&] { return (const char*)DatumGetCString(DirectFunctionCall1(interval_out, interval)); });
}

std::string timestamp_text(Micros at) {
  return guard::call(
      [&] { return (const char*)DatumGetCString(DirectFunctionCall1(timestamptz_out, TimestampTzGetDatum(at))); });
}

Micros interval_of(const Value& value, std::string_view field, Micros from) {
  if (value.null) check::fail_null(field);
  const Micros rough = micros_of_interval(value.datum);
  // So far out of bounds that the sum with a timestamp may be out of range.
  if (rough < -check::kLongest || rough > check::kLongest)
    check::duration(field, interval_text(value.datum), rough < 0 ? -1 : check::kLongest + 1);
  const Micros end = guard::call([&] {
    return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(from), value.datum));
  });
  const Micros exact = rough < 0 ? -1 : end - from;
  if (exact < 0 || exact > check::kLongest) check::duration(field, interval_text(value.datum), exact);
  return exact;
}

Elements elements_of(Datum array) {
  return guard::call([&] {
    Elements found{nullptr, nullptr, 0};
    ArrayType* a = DatumGetArrayTypeP(array);
    int16 length = 0;
    bool by_value = false;
    char align = 0;
    get_typlenbyvalalign(ARR_ELEMTYPE(a), &length, &by_value, &align);
    deconstruct_array(a, ARR_ELEMTYPE(a), length, by_value, align, &found.values, &found.nulls, &found.count);
    return found;
  });
}

std::vector<Datum> elements(const Value& array, std::string_view field) {
  if (array.null) check::fail_null(field);
  const Elements e = elements_of(array.datum);
  std::vector<Datum> result;
  for (int i = 0; i < e.count; ++i) {
    if (e.nulls[i]) check::fail_null(check::element_of(field, i + 1));
    result.push_back(e.values[i]);
  }
  return result;
}

std::vector<std::string> names_of(const Value& array, std::string_view field) {
  std::vector<std::string> names;
  for (const Datum datum : elements(array, field)) names.emplace_back(text_view(datum));
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

Datum json_of(std::string_view text, std::string_view field) {
  const std::string copy(text);
  const char* string = copy.c_str();
  try {
    return guard::call([&] { return DirectFunctionCall1(jsonb_in, CStringGetDatum(string)); });
  } catch (Error& error) {
    error.detail = error.detail.empty() ? error.message : mq::format("{}: {}", error.message, error.detail);
    error.message = mq::format("invalid {}: not acceptable as jsonb", field);
    throw;
  }
}

}  // namespace mq
