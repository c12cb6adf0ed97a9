#include "extension.hpp"

#include <algorithm>

#include "fence.hpp"

extern "C" {
#include "access/genam.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "jit/jit.h"
#include "optimizer/cost.h"
#include "optimizer/paths.h"
#include "optimizer/plancat.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/syscache.h"
}

namespace mq {

namespace {

// Set by get(); never destroyed, since FATAL runs the destructors of globals.
Extension* current = nullptr;
// Set by the invalidation callbacks, cleared by look_up().
bool stale = true;
// Oids whose relcache invalidation means something to us. Set by look_up().
Oid msgs_relation = InvalidOid;
Oid dead_relation = InvalidOid;
Oid payloads_relation = InvalidOid;
Oid handlers_relation = InvalidOid;
Oid paused_relation = InvalidOid;
Oid enabled_relation = InvalidOid;
std::uint64_t registry_changes = 1;
std::uint64_t handlers_changes = 1;  // of them

void relation_changed(Datum, Oid relation) {
  if (relation == InvalidOid || relation == msgs_relation) stale = true;
  if (relation == InvalidOid || relation == handlers_relation) ++handlers_changes;
  if (relation == InvalidOid || relation == handlers_relation || relation == paused_relation ||
      relation == enabled_relation)
    ++registry_changes;
}

void catalog_changed(Datum, int cache, uint32) {
  if (cache == NAMESPACEOID) stale = true;
  ++registry_changes;  // a function, a role, a membership or a table that a subscription writes
}

// OwnerScopes that are open.
int scopes = 0;
get_relation_info_hook_type previous_relation_info_hook = nullptr;

// Plans of our statements are kept while tables fill and empty, so they are made for large tables. Of an empty one the
// planner thinks that all of an index is read as fast as one row of it.
void plan_for_large_tables(PlannerInfo* root, Oid relation, bool inherits, RelOptInfo* info) {
  constexpr double kRows = 1e6;
  constexpr BlockNumber kPages = 20000;
  if (previous_relation_info_hook != nullptr) previous_relation_info_hook(root, relation, inherits, info);
  if (scopes == 0 || relation < FirstNormalObjectId) return;
  info->tuples = std::max(info->tuples, kRows);
  info->pages = std::max(info->pages, kPages);
  ListCell* cell = nullptr;
  foreach (cell, info->indexlist) {
    auto* index = static_cast<IndexOptInfo*>(lfirst(cell));
    index->tuples = std::max(index->tuples, kRows);
    index->pages = std::max(index->pages, kPages / 4);
    index->tree_height = std::max(index->tree_height, 2);
  }
}

void register_callbacks() {
  static bool registered = false;
  if (registered) return;
  registered = true;
  previous_relation_info_hook = get_relation_info_hook;
  get_relation_info_hook = plan_for_large_tables;
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
  fence::call([] { register_callbacks(); });
  stale = false;
  const Row row = fence::call([] { return find_extension(); });
  if (!OidIsValid(row.oid)) {
    stale = true;
    return false;
  }
  const char* name = fence::call([&] { return get_namespace_name(row.schema); });
  if (name == nullptr) {  // somebody drops it, and the extension with it
    stale = true;
    return false;
  }
  const char* quoted = fence::call([&] { return quote_identifier(name); });
  // Most of the time somebody has only vacuumed a table.
  if (oid_ != row.oid || schema_ != row.schema || schema_name_ != name || version_ != row.version) {
    ++generation_;
    ++registry_changes;
  }
  oid_ = row.oid;
  schema_ = row.schema;
  owner_ = row.owner;
  schema_name_ = name;
  quoted_schema_ = quoted;
  version_ = row.version;
  msgs_relation = relation("mq_msgs");
  dead_relation = relation("mq_dead");
  payloads_relation = relation("mq_payloads");
  handlers_relation = relation("mq_handlers");
  paused_relation = relation("mq_paused");
  enabled_relation = fence::call([&] { return get_relname_relid("mq_enabled", row.schema); });
  return true;
}

bool Extension::installed() {
  if (current == nullptr) current = new Extension();
  return !stale || current->look_up();
}

bool Extension::hold() {
  if (!installed()) return false;
  const Oid oid = current->oid_;
  fence::call([&] { LockDatabaseObject(ExtensionRelationId, oid, 0, AccessShareLock); });
  return installed();  // the wait may have been for its end
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

void Extension::look_again() {
  stale = true;
  ++registry_changes;
}

void Extension::registry_changed() {
  get();
  fence::call([] { CacheInvalidateRelcacheByRelid(handlers_relation); });
}

void Extension::extension_changed() {
  get();
  fence::call([] { CacheInvalidateRelcacheByRelid(msgs_relation); });
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

Oid Extension::msgs() {
  get();
  return msgs_relation;
}

Oid Extension::payloads() {
  get();
  return payloads_relation;
}

Oid Extension::dead() {
  get();
  return dead_relation;
}

Oid Extension::relation(const char* name) const {
  const Oid found = fence::call([&] { return get_relname_relid(name, schema_); });
  if (!OidIsValid(found)) throw Error("42P01", "relation \"" + quoted_schema_ + "." + name + "\" does not exist");
  return found;
}

OwnerScope::OwnerScope() {
  const Oid owner = Extension::get().owner();
  GetUserIdAndSecContext(&saved_user_, &saved_context_);
  saved_planner_ = {enable_seqscan,  enable_bitmapscan, enable_indexscan, enable_indexonlyscan,
                    enable_sort,     enable_nestloop,   enable_hashjoin,  enable_mergejoin,
                    enable_material, jit_enabled,       plan_cache_mode};
  ++scopes;
  nest_level_ = NewGUCNestLevel();
  SetUserIdAndSecContext(owner, saved_context_ | SECURITY_LOCAL_USERID_CHANGE);
  enable_seqscan = enable_bitmapscan = enable_sort = enable_hashjoin = enable_mergejoin = enable_material = false;
  enable_indexscan = enable_indexonlyscan = enable_nestloop = true;
  jit_enabled = false;
  plan_cache_mode = PLAN_CACHE_MODE_FORCE_GENERIC_PLAN;
  try {
    fence::call([] { SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION); });
  } catch (...) {
    this->~OwnerScope();
    throw;
  }
}

bool OwnerScope::is_open() {
  return scopes > 0;
}

OwnerScope::~OwnerScope() {
  --scopes;
  enable_seqscan = saved_planner_.seqscan;
  enable_bitmapscan = saved_planner_.bitmapscan;
  enable_indexscan = saved_planner_.indexscan;
  enable_indexonlyscan = saved_planner_.indexonlyscan;
  enable_sort = saved_planner_.sort;
  enable_nestloop = saved_planner_.nestloop;
  enable_hashjoin = saved_planner_.hashjoin;
  enable_mergejoin = saved_planner_.mergejoin;
  enable_material = saved_planner_.material;
  jit_enabled = saved_planner_.jit;
  plan_cache_mode = saved_planner_.plan_cache_mode;
  AtEOXact_GUC(false, nest_level_);
  SetUserIdAndSecContext(saved_user_, saved_context_);
}

}  // namespace mq
