#include "arguments.hpp"

#include <algorithm>

#include <fmt/core.h>

#include "../check.hpp"
#include "spi.hpp"

extern "C" {
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"
}

namespace mq {

void refuse_read_only(const char* function) {
  if (XactReadOnly) fence::call([&] { PreventCommandIfReadOnly(function); });
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
  return fence::call([&] { return (const char*)DatumGetCString(DirectFunctionCall1(interval_out, interval)); });
}

Micros interval_of(const Value& value, std::string_view field, Micros from) {
  if (value.null) check::fail_null(field);
  const Micros rough = micros_of_interval(value.datum);
  // Out of all bounds: the calendar cannot be asked.
  if (rough < -check::kLongest || rough > check::kLongest)
    check::duration(field, interval_text(value.datum), rough < 0 ? -1 : check::kLongest + 1);
  const Micros end = fence::call([&] {
    return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(from), value.datum));
  });
  const Micros exact = rough < 0 ? -1 : end - from;
  if (exact < 0 || exact > check::kLongest) check::duration(field, interval_text(value.datum), exact);
  return exact;
}

std::vector<Datum> elements(const Value& array, std::string_view field) {
  if (array.null) check::fail_null(field);
  struct Elements {
    Datum* values;
    bool* nulls;
    int count;
  };
  const Elements e = fence::call([&] {
    Elements found{nullptr, nullptr, 0};
    ArrayType* a = DatumGetArrayTypeP(array.datum);
    const bool text = ARR_ELEMTYPE(a) == TEXTOID;
    deconstruct_array(a, ARR_ELEMTYPE(a), text ? -1 : UUID_LEN, false, text ? TYPALIGN_INT : TYPALIGN_CHAR,
                      &found.values, &found.nulls, &found.count);
    return found;
  });
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
    return fence::call([&] { return DirectFunctionCall1(jsonb_in, CStringGetDatum(string)); });
  } catch (Error& error) {
    error.detail = error.detail.empty() ? error.message : fmt::format("{}: {}", error.message, error.detail);
    error.message = fmt::format("invalid {}: not acceptable as jsonb", field);
    throw;
  }
}

}  // namespace mq
