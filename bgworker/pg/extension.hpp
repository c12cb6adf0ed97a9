// The extension as it is installed in this database: its schema, owner and version; and OwnerScope,
// in which mq's own statements run. Every process with a database calls it. The state is this
// process's copy of the catalogs; invalidation callbacks tell when it is stale.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pg/error.hpp"
#include "pg/postgres.hpp"

namespace mq {

class Extension {
 public:
  // Must be called in a transaction. Looks the extension up again after something about it has
  // changed. Throws 3F000 if it is not installed.
  static const Extension& get();
  // The same, but false if it is not installed.
  static bool installed();

  // As installed(); and the extension cannot be dropped before the transaction ends. DROP EXTENSION
  // locks the extension before its tables. So a process that holds it and then locks tables cannot
  // deadlock with that.
  static bool hold();

  // Whether the catalog is that of this library. After a new library was installed it is not, until
  // ALTER EXTENSION mq UPDATE. Meanwhile senders and consumers go on, and workers wait. What cannot
  // work throws needs_update(), a 55000.
  bool is_updated() const { return version_ == MQ_VERSION; }
  Error needs_update() const;

  Oid oid() const { return oid_; }
  Oid schema() const { return schema_; }
  Oid owner() const { return owner_; }
  const std::string& schema_name() const { return schema_name_; }
  const std::string& quoted_schema() const { return quoted_schema_; }
  // Grows when the extension was installed anew or updated, or its schema renamed. That voids
  // plans.
  std::uint64_t generation() const { return generation_; }
  // Grows whenever something changed that the registry is read from, such as a handler, a paused
  // channel, a function or a role.
  static std::uint64_t registry_generation();
  // Grows whenever a handler was registered or unregistered. It may grow without that.
  static std::uint64_t handlers_generation();
  // Grows whenever the limits of channels were changed. It may grow without that.
  static std::uint64_t limits_generation();
  // Makes the next use look the extension up again. The invalidation callbacks do that, too, but
  // too late after a commit: the server sends invalidations after the commit has woken others.
  static void look_again();
  // Makes every process of the database read the registry again once this transaction commits.
  static void registry_changed();
  // This transaction changes the limits of channels: makes this process read them again at once, and after a
  // rollback; every other process of the database once it commits, as with the registry. Call it before the change.
  static void limits_changed();
  // Makes every process of the database look up the extension again once this transaction commits.
  static void extension_changed();

  // Tables of the extension. They throw 3F000 as get() does.
  static Oid msgs();
  static Oid dead();
  static Oid enabled();                  // InvalidOid if the catalog has no such table
  static Oid limits();                   // the same
  Oid relation(const char* name) const;  // of the extension's schema; throws 42P01

 private:
  bool look_up();

  Oid oid_ = InvalidOid;
  Oid schema_ = InvalidOid;
  Oid owner_ = InvalidOid;
  std::string schema_name_;
  std::string quoted_schema_;
  std::string version_;
  std::uint64_t generation_ = 0;
  struct Known {
    const char* address;
    std::string name;
    Oid oid;
  };
  mutable std::vector<Known> relations_;  // what relation() has found
};

// While it lives, statements run as the extension's owner, with the search_path "pg_catalog,
// pg_temp". The destructor restores both, after a return as after an exception. A rollback in
// between restores the same.
class OwnerScope {
 public:
  OwnerScope();
  ~OwnerScope();
  OwnerScope(const OwnerScope&) = delete;
  OwnerScope& operator=(const OwnerScope&) = delete;

  static bool is_open();  // whether one is open in this process
  static Oid caller();    // the current user, or, while one is open, the one of before the first

 private:
  Oid saved_user_ = InvalidOid;
  int saved_context_ = 0;
  int nest_level_ = 0;  // 0: all was so already
};

}  // namespace mq
