// The extension as it is installed in this database: schema, owner, and the scope in which our own statements
// run.
#pragma once

#include <cstdint>
#include <string>

#include "../error.hpp"
#include "postgres.hpp"

namespace mq {

class Extension {
 public:
  // Must be called in a transaction. Looks it up again after something about it changed. Throws 3F000 if the
  // extension is not installed.
  static const Extension& get();
  // The same; false where it is not installed.
  static bool installed();

  // installed(), and it cannot be dropped before the transaction ends. DROP EXTENSION locks the extension before
  // its tables, so who holds it while locking tables cannot deadlock with that.
  static bool hold();

  // Whether the catalog is that of this library: between a new library and ALTER EXTENSION mq UPDATE it is not. Senders
  // and pollers go on meanwhile; workers wait; what cannot work raises needs_update(), which is 55000.
  bool is_updated() const { return version_ == MQ_VERSION; }
  Error needs_update() const;

  Oid oid() const { return oid_; }
  Oid schema() const { return schema_; }
  Oid owner() const { return owner_; }
  const std::string& schema_name() const { return schema_name_; }
  const std::string& quoted_schema() const { return quoted_schema_; }
  // Grows when it was installed anew or its schema renamed: plans made before are void.
  std::uint64_t generation() const { return generation_; }
  // Grows whenever a handler, a paused channel or anything else that the registry is read from changed.
  static std::uint64_t registry_generation();
  // Grows whenever a handler was registered or unregistered.
  static std::uint64_t handlers_generation();
  // Looks it up again at the next use. Callbacks do that too, but only once the invalidation has been sent, which
  // a commit does after it has woken others.
  static void look_again();
  // Has every process of the database read the registry again when this transaction commits.
  static void registry_changed();
  // Has every process of the database look up the extension again when this transaction commits.
  static void extension_changed();

  // The tables that rows are counted of.
  static Oid msgs();
  static Oid dead();
  static Oid payloads();
  static Oid enabled();                  // InvalidOid in a catalog that has no such table
  Oid relation(const char* name) const;  // of our schema; throws 42P01

 private:
  bool look_up();

  Oid oid_ = InvalidOid;
  Oid schema_ = InvalidOid;
  Oid owner_ = InvalidOid;
  std::string schema_name_;
  std::string quoted_schema_;
  std::string version_;
  std::uint64_t generation_ = 0;
};

// While it lives, statements run as the extension's owner, with a search_path that holds nothing but
// pg_catalog, and with plans for large tables that take the indexes, whatever the statistics say. Left by return or by
// an exception; a rollback in between restores the same.
class OwnerScope {
 public:
  OwnerScope();
  ~OwnerScope();
  OwnerScope(const OwnerScope&) = delete;
  OwnerScope& operator=(const OwnerScope&) = delete;

  // Who called us.
  Oid caller() const { return saved_user_; }
  static bool is_open();

 private:
  Oid saved_user_ = InvalidOid;
  int saved_context_ = 0;
  int nest_level_ = 0;
  struct Planner {
    bool seqscan, bitmapscan, indexscan, indexonlyscan, sort, nestloop, hashjoin, mergejoin, material, jit;
    int plan_cache_mode;
  } saved_planner_{};
};

}  // namespace mq
