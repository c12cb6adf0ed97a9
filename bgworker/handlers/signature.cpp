#include "handlers/signature.hpp"

#include <optional>
#include <string>

#include "handlers/shape.hpp"
#include "pg/guard.hpp"

extern "C" {
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "utils/builtins.h"
#include "utils/syscache.h"
}

namespace mq {

namespace {

// Takes an identifier, quoted or not, off the beginning of `text`. None: there is no valid one.
std::optional<std::string> take_identifier(std::string_view& text) {
  std::string name;
  if (!text.starts_with('"')) {
    const std::size_t end = std::min(text.find_first_of(".()[]\" ,"), text.size());
    name = text.substr(0, end);
    text.remove_prefix(end);
  } else {
    text.remove_prefix(1);
    for (;;) {
      const std::size_t quote = text.find('"');
      if (quote == std::string_view::npos) return std::nullopt;
      name += text.substr(0, quote);
      text.remove_prefix(quote + 1);
      if (!text.starts_with('"')) break;
      name += '"';
      text.remove_prefix(1);
    }
  }
  if (name.empty() || name.size() >= NAMEDATALEN) return std::nullopt;
  return name;
}

bool take(std::string_view& text, char c) {
  if (!text.starts_with(c)) return false;
  text.remove_prefix(1);
  return true;
}

std::optional<Shape> shape_of_type(std::string_view type) {
  std::optional<std::string> name = take_identifier(type);
  if (name && take(type, '.')) name = take_identifier(type);
  if (!name) return std::nullopt;
  if (*name == "jsonb" && type.empty()) return Shape::kJson;
  if (*name == "mq_message" && type.empty()) return Shape::kMessage;
  if (*name == "mq_message" && type == "[]") return Shape::kBatch;
  return std::nullopt;
}

}  // namespace

Oid function_of(std::string_view signature) {
  const std::optional<std::string> schema = take_identifier(signature);
  if (!schema || !take(signature, '.')) return InvalidOid;
  const std::optional<std::string> name = take_identifier(signature);
  if (!name || !take(signature, '(') || !signature.ends_with(')')) return InvalidOid;
  signature.remove_suffix(1);
  const std::optional<Shape> shape = shape_of_type(signature);
  if (!shape) return InvalidOid;
  const Oid type = argument_type(*shape);
  const char* schema_name = schema->c_str();
  const char* function_name = name->c_str();
  return guard::call([&] {
    const Oid found = get_namespace_oid(schema_name, true);
    if (!OidIsValid(found)) return InvalidOid;
    return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(function_name),
                           PointerGetDatum(buildoidvector(&type, 1)), ObjectIdGetDatum(found));
  });
}

}  // namespace mq
