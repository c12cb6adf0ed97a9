#include "api/create_database.hpp"

#include <sys/stat.h>

#include <clocale>
#include <cstring>
#include <initializer_list>

#include "pg/versions.hpp"

extern "C" {
#include "access/transam.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/tablespace.h"
#include "common/relpath.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

// With USE_ICU, pg_locale.h includes the headers of ICU. Nothing here uses them.
#undef USE_ICU
#include "utils/pg_locale.h"
}

namespace mq {

namespace {

// The properties that a copy shares with its template.
struct Source {
  bool exists;
  int encoding;
  char provider;
  char* collate;
  char* ctype;
  char* locale;             // for providers other than libc; nullptr: none
  char* collation_version;  // nullptr: not recorded
};

char* text_of(HeapTuple tuple, AttrNumber attribute) {
  bool is_null = false;
  const Datum value = SysCacheGetAttr(DATABASEOID, tuple, attribute, &is_null);
  return is_null ? nullptr : TextDatumGetCString(value);
}

Source read(Oid database) {
  Source source{};
  HeapTuple tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
  if (!HeapTupleIsValid(tuple)) return source;
  const auto* form = (Form_pg_database)GETSTRUCT(tuple);
  constexpr int kInvalid = -2;  // datconnlimit of a database whose DROP was interrupted
  source = {form->datconnlimit != kInvalid,
            form->encoding,
            form->datlocprovider,
            text_of(tuple, Anum_pg_database_datcollate),
            text_of(tuple, Anum_pg_database_datctype),
            text_of(tuple, server::kDatabaseLocale),
            text_of(tuple, Anum_pg_database_datcollversion)};
  ReleaseSysCache(tuple);
  return source;
}

bool is_locale(int category, const char* name, const char* wanted) {
  char* canonical = nullptr;
  return check_locale(category, name, &canonical) && wanted != nullptr && strcmp(canonical, wanted) == 0;
}

bool is_encoding(DefElem* option, int wanted) {
  if (IsA(option->arg, Integer)) return defGetInt32(option) == wanted;
  return pg_valid_server_encoding(defGetString(option)) == wanted;
}

bool is_provider(const char* name, char wanted) {
  if (pg_strcasecmp(name, "libc") == 0) return wanted == COLLPROVIDER_LIBC;
  if (pg_strcasecmp(name, "icu") == 0) return wanted == COLLPROVIDER_ICU;
  if (pg_strcasecmp(name, "builtin") == 0) return wanted == server::kBuiltinProvider;
  return false;
}

bool is_free_oid(Oid id) {
  return id >= FirstNormalObjectId && get_database_name(id) == nullptr;
}

bool is_strategy(const char* name) {
  return pg_strcasecmp(name, "wal_log") == 0 || pg_strcasecmp(name, "file_copy") == 0;
}

bool takes(DefElem* option, const Source& source) {
  const char* name = option->defname;
  const auto is = [&](const char* other) { return strcmp(name, other) == 0; };
  if (option->arg == nullptr)  // DEFAULT, as a rule
    return is("template") || is("owner") || is("tablespace") || is("encoding") || is("locale") || is("lc_collate") ||
           is("lc_ctype") || is("connection_limit") || is("is_template") || is("allow_connections");
  if (is("connection_limit")) return defGetInt32(option) >= -1;
  if (is("is_template") || is("allow_connections")) {
    (void)defGetBoolean(option);
    return true;
  }
  if (is("encoding")) return is_encoding(option, source.encoding);
  if (is("locale_provider")) return is_provider(defGetString(option), source.provider);
  if (is("strategy")) return is_strategy(defGetString(option));
  if (is("oid")) return is_free_oid(defGetObjectId(option));
  const bool locale = is("locale");
  if (locale && source.provider != COLLPROVIDER_LIBC) return true;
  if ((locale || is("lc_collate")) && !is_locale(LC_COLLATE, defGetString(option), source.collate)) return false;
  if ((locale || is("lc_ctype")) && !is_locale(LC_CTYPE, defGetString(option), source.ctype)) return false;
  for (const char* other : {"template", "owner", "tablespace", "locale", "lc_collate", "lc_ctype", "collation_version",
                            "icu_locale", "icu_rules", "builtin_locale", "location"})
    if (is(other)) return true;
  return false;
}

}  // namespace

bool takes_options(const CreatedbStmt* statement, Oid source_database) {
  const Source source = read(source_database);
  if (!source.exists) return false;
  bool version_given = false;
  ListCell* cell = nullptr;
  foreach (cell, statement->options) {
    auto* option = static_cast<DefElem*>(lfirst(cell));
    ListCell* before = nullptr;
    foreach (before, statement->options) {
      if (before == cell) break;
      if (strcmp(static_cast<DefElem*>(lfirst(before))->defname, option->defname) == 0) return false;
    }
    if (!takes(option, source)) return false;
    version_given = version_given || strcmp(option->defname, "collation_version") == 0;
  }
  if (version_given || source.collation_version == nullptr) return true;
  const char* collation = source.provider == COLLPROVIDER_LIBC ? source.collate : source.locale;
  const char* version = get_collation_actual_version(source.provider, collation);
  return version != nullptr && strcmp(version, source.collation_version) == 0;
}

bool tablespace_has_room(Oid database, Oid tablespace) {
  char* path = GetDatabasePath(database, tablespace);
  struct stat found;
  const bool is_empty = stat(path, &found) != 0 || !S_ISDIR(found.st_mode) || directory_is_empty(path);
  pfree(path);
  return is_empty;
}

}  // namespace mq
