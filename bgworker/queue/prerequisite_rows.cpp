#include "queue/prerequisite_rows.hpp"

#include <algorithm>
#include <set>

#include "pg/dirty_scan.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/plain_table.hpp"
#include "pg/row_locks.hpp"
#include "pg/statement.hpp"
#include "queue/claimed_rows.hpp"

extern "C" {
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
}

namespace mq {

namespace {

constexpr const char* kTable = "mq_prerequisites";
constexpr const char* kNotChanged = "no row of it can be changed";  // where it is locked

// An array in memory of the current context, for bodies of guard::call().
template <class T>
class Array {
 public:
  void add(const T& item) {
    if (count_ == room_) {
      room_ = room_ == 0 ? 64 : 2 * room_;
      const Size size = sizeof(T) * room_;
      items_ =
          static_cast<T*>(items_ == nullptr ? palloc_extended(size, MCXT_ALLOC_HUGE) : repalloc_huge(items_, size));
    }
    items_[count_++] = item;
  }
  std::span<const T> items() const { return {items_, count_}; }

 private:
  T* items_ = nullptr;
  Size count_ = 0;
  Size room_ = 0;
};

const pg_uuid_t* pg_uuid(const Uuid& id) {
  return reinterpret_cast<const pg_uuid_t*>(id.bytes.data());
}

Uuid uuid_at(const DirtyScan& scan, AttrNumber column) {
  Uuid id;
  bool null = false;
  memcpy(id.bytes.data(), DatumGetUUIDP(scan.column(column, null))->data, UUID_LEN);
  return id;
}

// For bodies of guard::call(): the table's lock is held, and released.
bool has_block(Oid table) {
  const Relation relation = table_open(table, NoLock);
  const BlockNumber blocks = RelationGetNumberOfBlocks(relation);
  table_close(relation, AccessShareLock);
  return blocks > 0;
}

// The table, an index of it, and the numbers of its columns.
struct Place {
  explicit Place(const char* index_name)
      : table(Extension::get().relation(kTable)), index(Extension::get().relation(index_name)) {}

  void find_columns() {  // for bodies of guard::call()
    dependent = get_attnum(table, "dependent");
    prerequisite = get_attnum(table, "prerequisite");
  }
  PrerequisiteRow row(const DirtyScan& scan) const {
    return {{uuid_at(scan, dependent), uuid_at(scan, prerequisite)},
            scan.disturbed() ? Seen::kDisturbed : Seen::kThere,
            location_of(scan.location())};
  }

  const Oid table, index;
  AttrNumber dependent = 0, prerequisite = 0;
};

#define BY_PREREQUISITE "mq_prerequisites_prerequisite"
#define BY_DEPENDENT "mq_prerequisites_dependent"

// The rows with these ids in the first column of the index.
std::span<const PrerequisiteRow> rows_by(const char* index, std::span<const Uuid> ids) {
  Place place(index);
  return guard::call([&] {
    Array<PrerequisiteRow> found;
    DirtyScan scan;
    place.find_columns();
    scan.open(place.table, place.index);
    for (const Uuid& id : ids) {
      scan.find(pg_uuid(id));
      while (scan.next()) {
        CHECK_FOR_INTERRUPTS();
        found.add(place.row(scan));
      }
    }
    scan.close();
    return found.items();
  });
}

// The rows of each pair's dependent that `how` tells; the first that is kThere, or else one that is not.
PrerequisiteRow first_row(DirtyScan& scan, const Place& place, const Prerequisite& pair,
                          std::initializer_list<DirtyScan::Second> how) {
  PrerequisiteRow found{pair, Seen::kNot, 0};
  for (const DirtyScan::Second second : how) {
    scan.find(pg_uuid(pair.dependent), second, pg_uuid(pair.prerequisite));
    while (scan.next()) {
      CHECK_FOR_INTERRUPTS();
      found = place.row(scan);
      if (found.seen == Seen::kThere) return found;
    }
  }
  return found;
}

std::span<const PrerequisiteRow> first_rows(std::span<const Prerequisite> pairs,
                                            std::initializer_list<DirtyScan::Second> how) {
  Place place(BY_DEPENDENT);
  return guard::call([&] {
    Array<PrerequisiteRow> found;
    DirtyScan scan;
    place.find_columns();
    scan.open(place.table, place.index);
    for (const Prerequisite& pair : pairs) found.add(first_row(scan, place, pair, how));
    scan.close();
    return found.items();
  });
}

}  // namespace

bool has_prerequisites() {
  const Oid table = Extension::get().relation(kTable);
  return row_locks::Removal::run([&] {
    return guard::call([&] {
      LockRelationOid(table, AccessShareLock);
      return has_block(table);
    });
  });
}

bool has_rechecks() {
  const Oid table = Extension::get().relation("mq_rechecks");
  return guard::call([&] { return ConditionalLockRelationOid(table, AccessShareLock) && has_block(table); });
}

std::span<const PrerequisiteRow> rows_of(std::span<const Uuid> prerequisites) {
  return rows_by(BY_PREREQUISITE, prerequisites);
}

std::span<const PrerequisiteRow> rows_of_dependents(std::span<const Uuid> dependents) {
  return rows_by(BY_DEPENDENT, dependents);
}

std::span<const PrerequisiteRow> rows_of_pairs(std::span<const Prerequisite> pairs) {
  return first_rows(pairs, {DirtyScan::Second::kEqual});
}

std::span<const PrerequisiteRow> any_row_of(std::span<const Prerequisite> pairs) {
  return first_rows(pairs, {DirtyScan::Second::kAbove, DirtyScan::Second::kUpTo});
}

std::span<const Seen> pending_now(std::span<const Uuid> messages) {
  const Oid table = Extension::msgs();
  const Oid index = Extension::get().relation("mq_msgs_pkey");
  const AttrNumber attempt_at = attribute_numbers(table)[kAttemptAt];
  return guard::call([&] {
    Array<Seen> found;
    DirtyScan scan;
    scan.open(table, index);
    for (const Uuid& id : messages) {
      Seen seen = Seen::kNot;
      scan.find(pg_uuid(id));
      while (seen != Seen::kDisturbed && scan.next()) {
        bool dead = false;
        (void)scan.column(attempt_at, dead);
        if (scan.disturbed())
          seen = Seen::kDisturbed;
        else if (!dead)
          seen = Seen::kThere;
      }
      CHECK_FOR_INTERRUPTS();
      found.add(seen);
    }
    scan.close();
    return found.items();
  });
}

std::string_view channel_of(const Uuid& message) {
  const Oid table = Extension::msgs();
  const Oid index = Extension::get().relation("mq_msgs_pkey");
  const AttrNumber channel_name = attribute_numbers(table)[kChannelName];
  return guard::call([&] {
    std::string_view name;
    DirtyScan scan;
    scan.open(table, index);
    scan.find(pg_uuid(message));
    if (scan.next()) {
      bool null = false;
      const text* copy = DatumGetTextPCopy(scan.column(channel_name, null));
      name = {VARDATA_ANY(copy), static_cast<std::size_t>(VARSIZE_ANY_EXHDR(copy))};
    }
    scan.close();
    return name;
  });
}

void add_rows(std::span<const Prerequisite> pairs) {
  static constexpr TableColumn kColumns[] = {{"prerequisite", UUIDOID}, {"dependent", UUIDOID}};
  static Statement insert("INSERT INTO $S.mq_prerequisites (prerequisite, dependent) SELECT * FROM unnest($1, $2)",
                          {UUIDARRAYOID, UUIDARRAYOID});
  if (pairs.empty()) return;
  std::vector<Param> values;
  values.reserve(2 * pairs.size());
  for (const Prerequisite& pair : pairs) {
    values.emplace_back(UUIDPGetDatum(pg_uuid(pair.prerequisite)));
    values.emplace_back(UUIDPGetDatum(pg_uuid(pair.dependent)));
  }
  if (insert_rows(Extension::get().relation(kTable), kColumns, values)) return;
  ArrayParam prerequisites(UUIDOID, pairs.size()), dependents(UUIDOID, pairs.size());
  for (std::size_t i = 0; i < values.size(); i += 2) {
    prerequisites.add(values[i]);
    dependents.add(values[i + 1]);
  }
  insert.run({prerequisites.datum(), dependents.datum()});
}

namespace {

// Removes the rows straight from the table. False: a trigger, rule or policy has to be asked.
bool remove_straight(std::span<const PrerequisiteRow> rows, char* removed) {
  Place place(BY_DEPENDENT);
  return guard::call([&] {
    const Relation relation = table_open(place.table, RowExclusiveLock);
    if (relation->trigdesc != nullptr || relation->rd_rules != nullptr || relation->rd_rel->relrowsecurity) {
      table_close(relation, NoLock);
      return false;
    }
    CheckCmdReplicaIdentity(relation, CMD_DELETE);  // may refuse where a publication has the table
    place.find_columns();
    TupleTableSlot* slot = table_slot_create(relation, nullptr);
    PushActiveSnapshot(GetLatestSnapshot());
    const CommandId command = GetCurrentCommandId(true);
    const auto is = [&](AttrNumber column, const Uuid& id) {
      bool null = false;
      return memcmp(DatumGetUUIDP(slot_getattr(slot, column, &null))->data, id.bytes.data(), UUID_LEN) == 0;
    };
    for (std::size_t i = 0; i < rows.size(); ++i) {
      CHECK_FOR_INTERRUPTS();
      ItemPointerData item = item_of(rows[i].location);
      // The row may be gone by now, and another be in its place.
      if (!table_tuple_fetch_row_version(relation, &item, GetActiveSnapshot(), slot) ||
          !is(place.dependent, rows[i].pair.dependent) || !is(place.prerequisite, rows[i].pair.prerequisite))
        continue;
      TM_FailureData failure;
      removed[i] = table_tuple_delete(relation, &item, command, GetActiveSnapshot(), InvalidSnapshot, false, &failure,
                                      false) == TM_Ok;
    }
    PopActiveSnapshot();
    ExecDropSingleTupleTableSlot(slot);
    table_close(relation, NoLock);
    CommandCounterIncrement();
    return true;
  });
}

}  // namespace

std::vector<char> remove_rows(std::span<const PrerequisiteRow> rows) {
  static Statement remove(
      "DELETE FROM $S.mq_prerequisites q WHERE q.ctid = ANY (ARRAY("
      "  SELECT l.ctid FROM unnest($1, $2) AS r (prerequisite, dependent)"
      "    JOIN $S.mq_prerequisites l ON l.prerequisite = r.prerequisite AND l.dependent = r.dependent"
      "     FOR UPDATE OF l SKIP LOCKED)) RETURNING q.prerequisite, q.dependent",
      {UUIDARRAYOID, UUIDARRAYOID});
  std::vector<char> removed(rows.size(), 0);
  if (rows.empty()) return removed;
  row_locks::lock_to_write(kTable, kNotChanged);
  if (remove_straight(rows, removed.data())) return removed;
  ArrayParam prerequisites(UUIDOID, rows.size()), dependents(UUIDOID, rows.size());
  for (const PrerequisiteRow& row : rows) {
    prerequisites.add(uuid_datum(row.pair.prerequisite));
    dependents.add(uuid_datum(row.pair.dependent));
  }
  const Rows gone = remove.run({prerequisites.datum(), dependents.datum()});
  std::set<Prerequisite> pairs;
  for (std::size_t i = 0; i < gone.size(); ++i) pairs.insert({uuid_of(gone.get(i, 2)), uuid_of(gone.get(i, 1))});
  for (std::size_t i = 0; i < rows.size(); ++i) removed[i] = pairs.contains(rows[i].pair);
  return removed;
}

void add_rechecks(std::span<const Prerequisite> pairs) {
  static Statement insert("INSERT INTO $S.mq_rechecks (dependent, prerequisite) SELECT * FROM unnest($1, $2)",
                          {UUIDARRAYOID, UUIDARRAYOID});
  if (pairs.empty()) return;
  row_locks::lock_to_write("mq_rechecks", kNotChanged);
  ArrayParam dependents(UUIDOID, pairs.size()), prerequisites(UUIDOID, pairs.size());
  for (const Prerequisite& pair : pairs) {
    dependents.add(uuid_datum(pair.dependent));
    prerequisites.add(uuid_datum(pair.prerequisite));
  }
  insert.run({dependents.datum(), prerequisites.datum()});
}

}  // namespace mq
