#include "pg/extension.hpp"

#include <algorithm>
#include <string_view>

#include "pg/guard.hpp"

extern "C" {
#include "access/genam.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
}

namespace mq {

namespace {

// Set by installed(). Never destroyed, since FATAL runs the destructors of globals.
Extension* current = nullptr;
// Set by the invalidation callbacks and look_again(), cleared by look_up().
bool stale = true;
// The OIDs of tables whose relcache invalidation matters to mq. Set by look_up().
Oid msgs_relation = InvalidOid;
Oid dead_relation = InvalidOid;
Oid handlers_relation = InvalidOid;
Oid paused_relation = InvalidOid;
Oid enabled_relation = InvalidOid;
Oid limits_relation = InvalidOid;
std::uint64_t registry_changes = 1;
std::uint64_t handlers_changes = 1;
constexpr std::size_t kMostKnown = 100;
bool relations_stale = false;  // set by relation_changed(), for relation()
std::uint64_t limits_changes = 1;

void relation_changed(Datum, Oid relation) {
  relations_stale = true;
  if (relation == InvalidOid || relation == msgs_relation) stale = true;
  if (relation == InvalidOid || relation == handlers_relation) ++handlers_changes;
  if (relation == InvalidOid || relation == handlers_relation || relation == paused_relation ||
      relation == enabled_relation || relation == limits_relation)
    ++registry_changes;
  if (relation == InvalidOid || relation == limits_relation) ++limits_changes;
}

void catalog_changed(Datum, int cache, uint32) {
  if (cache == NAMESPACEOID) stale = true;
  ++registry_changes;  // a schema, a function, a role, a membership, or a table of a subscription
}

// How many OwnerScopes are open, and the current user before the first of them.
int scopes = 0;
Oid caller_of_scopes = InvalidOid;

void register_callbacks() {
  static bool registered = false;
  if (registered) return;
  registered = true;
  CacheRegisterRelcacheCallback(relation_changed, 0);
  CacheRegisterSyscacheCallback(NAMESPACEOID, catalog_changed, 0);
  CacheRegisterSyscacheCallback(PROCOID, catalog_changed, 0);
  CacheRegisterSyscacheCallback(AUTHOID, catalog_changed, 0);
  CacheRegisterSyscacheCallback(AUTHMEMROLEMEM, catalog_changed, 0);
  CacheRegisterSyscacheCallback(SUBSCRIPTIONRELMAP, catalog_changed, 0);
}

struct Row {
  Oid oid, schema, owner;
  const char* version;
};

Row find_extension() {
  Row row{InvalidOid, InvalidOid, InvalidOid, nullptr};
  Relation catalog = table_open(ExtensionRelationId, AccessShareLock);
  ScanKeyData key[1];
  ScanKeyInit(&key[0], Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum("mq"));
  SysScanDesc scan = systable_beginscan(catalog, ExtensionNameIndexId, true, nullptr, 1, key);
  HeapTuple tuple = systable_getnext(scan);
  if (HeapTupleIsValid(tuple)) {
    const auto* form = (Form_pg_extension)GETSTRUCT(tuple);
    bool null = false;
    const Datum version = heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(catalog), &null);
    row = {form->oid, form->extnamespace, form->extowner, null ? "" : TextDatumGetCString(version)};
  }
  systable_endscan(scan);
  table_close(catalog, AccessShareLock);
  return row;
}

}  // namespace

bool Extension::look_up() {
  guard::call([] { register_callbacks(); });
  stale = false;
  const Row row = guard::call([] { return find_extension(); });
  if (!OidIsValid(row.oid)) {
    stale = true;
    return false;
  }
  const char* name = guard::call([&] { return get_namespace_name(row.schema); });
  if (name == nullptr) {  // another session drops the schema, and the extension with it
    stale = true;
    return false;
  }
  const char* quoted = guard::call([&] { return quote_identifier(name); });
  // Mostly nothing of this has changed: a table was vacuumed, say.
  if (oid_ != row.oid || schema_ != row.schema || schema_name_ != name || version_ != row.version) {
    ++generation_;
    ++registry_changes;
    ++limits_changes;
  }
  oid_ = row.oid;
  schema_ = row.schema;
  owner_ = row.owner;
  schema_name_ = name;
  quoted_schema_ = quoted;
  version_ = row.version;
  relations_.clear();
  msgs_relation = relation("mq_msgs");
  dead_relation = relation("mq_dead");
  handlers_relation = relation("mq_handlers");
  paused_relation = relation("mq_paused");
  enabled_relation = guard::call([&] { return get_relname_relid("mq_enabled", row.schema); });
  limits_relation = guard::call([&] { return get_relname_relid("mq_channel_limits", row.schema); });
  return true;
}

bool Extension::installed() {
  if (current == nullptr) current = new Extension();
  return !stale || current->look_up();
}

bool Extension::hold() {
  if (!installed()) return false;
  const Oid oid = current->oid_;
  guard::call([&] { LockDatabaseObject(ExtensionRelationId, oid, 0, AccessShareLock); });
  return installed();  // DROP EXTENSION may have ended the wait for the lock
}

const Extension& Extension::get() {
  if (!installed()) throw Error("3F000", "extension \"mq\" is not installed in this database");
  return *current;
}

std::uint64_t Extension::registry_generation() {
  return registry_changes;
}

std::uint64_t Extension::handlers_generation() {
  return handlers_changes;
}

std::uint64_t Extension::limits_generation() {
  return limits_changes;
}

void Extension::look_again() {
  stale = true;
  ++registry_changes;
}

void Extension::registry_changed() {
  get();
  guard::call([] { CacheInvalidateRelcacheByRelid(handlers_relation); });
}

void Extension::limits_changed() {
  if (!OidIsValid(limits())) return;
  ++limits_changes;
  guard::call([] { CacheInvalidateRelcacheByRelid(limits_relation); });
}

void Extension::extension_changed() {
  get();
  guard::call([] { CacheInvalidateRelcacheByRelid(msgs_relation); });
}

Error Extension::needs_update() const {
  return {"55000",
          "extension \"mq\" is of version " + version_ + " in this database, its library of version " MQ_VERSION, "",
          "Use ALTER EXTENSION mq UPDATE."};
}

Oid Extension::enabled() {
  get();
  return enabled_relation;
}

Oid Extension::limits() {
  get();
  return limits_relation;
}

Oid Extension::msgs() {
  get();
  return msgs_relation;
}

Oid Extension::dead() {
  get();
  return dead_relation;
}

// A rename, too, invalidates the relation. The address tells most names apart: nearly all are literals.
Oid Extension::relation(const char* name) const {
  if (relations_stale) relations_.clear();
  relations_stale = false;
  for (const Known& known : relations_)
    if (known.address == name && known.name == name) return known.oid;
  const Oid found = guard::call([&] { return get_relname_relid(name, schema_); });
  if (!OidIsValid(found) && !is_updated()) throw needs_update();
  if (!OidIsValid(found)) throw Error("42P01", "relation \"" + quoted_schema_ + "." + name + "\" does not exist");
  if (relations_.size() < kMostKnown) relations_.push_back({name, name, found});
  return found;
}

namespace {

constexpr char kPath[] = "pg_catalog, pg_temp";

}  // namespace

// A new search_path has the next look-up by name resolve it again. So a scope within another one leaves all as it
// is, unless a function in between has changed it.
OwnerScope::OwnerScope() {
  const Oid owner = Extension::get().owner();
  GetUserIdAndSecContext(&saved_user_, &saved_context_);
  if (scopes++ == 0) caller_of_scopes = saved_user_;
  if (scopes > 1 && saved_user_ == owner && (saved_context_ & SECURITY_LOCAL_USERID_CHANGE) != 0 &&
      std::string_view(namespace_search_path) == kPath)
    return;
  nest_level_ = NewGUCNestLevel();
  SetUserIdAndSecContext(owner, saved_context_ | SECURITY_LOCAL_USERID_CHANGE);
  try {
    guard::call([] { SetConfigOption("search_path", kPath, PGC_USERSET, PGC_S_SESSION); });
  } catch (...) {
    this->~OwnerScope();
    throw;
  }
}

bool OwnerScope::is_open() {
  return scopes > 0;
}

Oid OwnerScope::caller() {
  return scopes > 0 ? caller_of_scopes : GetUserId();
}

OwnerScope::~OwnerScope() {
  --scopes;
  if (nest_level_ == 0) return;
  AtEOXact_GUC(false, nest_level_);
  SetUserIdAndSecContext(saved_user_, saved_context_);
}

}  // namespace mq
