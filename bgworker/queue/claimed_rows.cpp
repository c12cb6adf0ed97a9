#include "queue/claimed_rows.hpp"

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/versions.hpp"
#include "queue/cancel_notes.hpp"
#include "queue/enabled.hpp"
#include "shmem/leased_calls.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"
}

namespace mq {

const TableColumn kMsgsColumns[kAllColumns] = {{"id", UUIDOID},
                                               {"channel_key", INT8OID},
                                               {"seq", INT8OID},
                                               {"attempt_at", TIMESTAMPTZOID, true},
                                               {"retry_backoff", INTERVALOID},
                                               {"channel_name", TEXTOID},
                                               {"channel_args", TEXTOID},
                                               {"message_name", TEXTOID},
                                               {"attempt", INT4OID},
                                               {"attempts", INT4OID},
                                               {"after_message_id", UUIDOID, true},
                                               {"commit_interval", INTERVALOID, true},
                                               {"message_json", JSONBOID, true},
                                               {"message_bytes", BYTEAOID, true},
                                               {"expires_at", TIMESTAMPTZOID, true},
                                               {"created_at", TIMESTAMPTZOID, true},
                                               {"lease", INT8OID, true},
                                               {"headers", JSONBOID, true},
                                               {"priority", INT2OID},
                                               {"keep", INTERVALOID, true},
                                               {"throttled_at", TIMESTAMPTZOID, true},
                                               {"dedup_key", TEXTOID, true},
                                               {"fair", BOOLOID},
                                               {"due_at", TIMESTAMPTZOID, true}};

namespace {

// The numbers of the columns in the table, of one generation of the extension.
struct Attributes {
  std::uint64_t generation = 0;
  AttrNumber numbers[kAllColumns] = {};
};
Attributes attributes;

}  // namespace

const AttrNumber* attribute_numbers(Oid table) {
  const Extension& extension = Extension::get();
  if (attributes.generation == extension.generation()) return attributes.numbers;
  if (!extension.is_updated()) throw extension.needs_update();
  guard::call([&] {
    for (int i = 0; i < kAllColumns; ++i) {
      attributes.numbers[i] = get_attnum(table, kMsgsColumns[i].name);
      if (attributes.numbers[i] == InvalidAttrNumber)
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
                        errmsg("column \"%s\" of relation \"mq_msgs\" does not exist", kMsgsColumns[i].name)));
    }
  });
  attributes.generation = extension.generation();
  return attributes.numbers;
}

PlainColumns msgs_columns(const AttrNumber* numbers) {
  return {kMsgsColumns, numbers};
}

std::uint64_t location_of(const ItemPointerData& location) {
  return std::uint64_t{ItemPointerGetBlockNumberNoCheck(&location)} << 16 |
         ItemPointerGetOffsetNumberNoCheck(&location);
}

std::uint64_t location_of(Datum tid) {
  return location_of(*reinterpret_cast<ItemPointer>(DatumGetPointer(tid)));
}

void before_lease(Claimed& message, std::int64_t token) {
  message.orphan = true;
  message.lease = token;
  --message.attempts;
  ++message.attempts_left;
}

Claimed& append(const LockedRow& row, Batch& batch) {
  const auto stored = [&](ClaimColumn column) {
    return row.nulls[column] ? nullptr : DatumGetPointer(row.values[column]);
  };
  const auto time = [&](ClaimColumn column) {
    return row.nulls[column] ? std::nullopt : std::optional<Micros>(DatumGetTimestampTz(row.values[column]));
  };
  Claimed& message = batch.emplace_back();
  message.id = uuid_of(row.values[kId]);
  message.channel_key = DatumGetInt64(row.values[kChannelKey]);
  message.seq = DatumGetInt64(row.values[kSeq]);
  message.attempt_at = time(kAttemptAt).value_or(0);
  message.retry_backoff = micros_of_interval(row.values[kRetryBackoff]);
  message.channel_name = text_view(row.values[kChannelName]);
  message.channel_args = text_view(row.values[kChannelArgs]);
  message.name = text_view(row.values[kName]);
  message.attempts = DatumGetInt32(row.values[kAttempts]);
  message.attempts_left = DatumGetInt32(row.values[kAttemptsLeft]);
  message.ordered = !row.nulls[kAfter];
  if (message.ordered) message.after = uuid_of(row.values[kAfter]);
  message.uncommitted = !row.nulls[kCommitInterval];
  message.payload_json = stored(kPayloadJson);
  message.payload_bytes = stored(kPayloadBytes);
  message.headers = stored(kHeaders);
  message.priority = DatumGetInt16(row.values[kPriority]);
  if (!row.nulls[kKeep]) message.keep = micros_of_interval(row.values[kKeep]);
  message.expires_at = time(kExpiresAt).value_or(kNever);
  message.created_at = time(kCreatedAt);
  message.throttled_at = time(kThrottledAt);
  message.location = location_of(row.location);
  message.locked = row.locked;
  const std::int64_t token = row.nulls[kLeaseToken] ? 0 : DatumGetInt64(row.values[kLeaseToken]);
  message.token = token;
  message.outside = !row.nulls[kLeaseToken] && token <= 0;
  if (token > 0 && shared::available()) {
    message.held = shared::lease_has_call(token);
    if (!message.held) before_lease(message, token);
  }
  message.cancelled = cancel_notes::of(message.id, message.seq);
  // Where messages are not handled none is moved to the dead letters either.
  if (cancel_notes::is_open(message.id, message.seq) || (message.cancelled != nullptr && !enabled::here()))
    message.held = true;
  return message;
}

void append(const Rows& rows, Batch& batch) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    LockedRow row;
    for (int column = 0; column < kColumns; ++column) row.values[column] = rows.get(i, column + 1, row.nulls[column]);
    row.location = *reinterpret_cast<ItemPointer>(DatumGetPointer(rows.get(i, kColumns + 1)));
    append(row, batch);
  }
}

// Whether this transaction has written the table anew (TRUNCATE, say): no row is at its old ctid.
bool has_new_file(Oid table) {
  return guard::call([&] {
    const Relation relation = RelationIdGetRelation(table);
    if (relation == nullptr) return false;
    const bool found = server::has_new_file(relation);
    RelationClose(relation);
    return found;
  });
}

ItemPointerData item_of(std::uint64_t location) {
  ItemPointerData item;
  ItemPointerSet(&item, static_cast<BlockNumber>(location >> 16), static_cast<OffsetNumber>(location & 0xffff));
  return item;
}

ItemPointerData item_of(const Claimed& message) {
  return item_of(message.location);
}

RowState row_state(Relation relation, const AttrNumber* numbers, const Claimed& message, TupleTableSlot* slot) {
  const auto is_it = [&] {
    bool null = false;
    const auto* id = DatumGetUUIDP(slot_getattr(slot, numbers[kId], &null));
    return memcmp(id->data, message.id.bytes.data(), UUID_LEN) == 0 &&
           DatumGetInt64(slot_getattr(slot, numbers[kSeq], &null)) == message.seq;
  };
  ItemPointerData item = item_of(message);
  if (table_tuple_fetch_row_version(relation, &item, GetActiveSnapshot(), slot)) {
    // The claim may have found the message in a table that inherits from this one.
    if (!is_it()) return RowState::kNotFound;
    if (message.locked) return RowState::kThere;
    // Another version of the row may have come to the same place.
    bool lease = false, due = false, null = false;
    (void)slot_getattr(slot, numbers[kLeaseToken], &lease);
    const Datum attempt_at = slot_getattr(slot, numbers[kAttemptAt], &due);
    const bool same = lease && !due && DatumGetTimestampTz(attempt_at) == message.attempt_at &&
                      DatumGetInt32(slot_getattr(slot, numbers[kAttempts], &null)) == message.attempts;
    return same ? RowState::kThere : RowState::kNotFound;
  }
  if (!table_tuple_fetch_row_version(relation, &item, SnapshotAny, slot) || !is_it()) return RowState::kNotFound;
  const HeapTuple tuple = ExecFetchSlotHeapTuple(slot, false, nullptr);
  const TransactionId xid = HeapTupleHeaderGetUpdateXid(tuple->t_data);
  return TransactionIdIsCurrentTransactionId(xid) ? RowState::kOurs : RowState::kNotFound;
}

std::vector<char> update_claimed(const std::vector<const Claimed*>& messages,
                                 const std::function<void(std::size_t i, NewVersion& version)>& change) {
  const Oid table = Extension::msgs();
  const AttrNumber* numbers = attribute_numbers(table);
  std::vector<char> written(messages.size(), 0);
  if (has_new_file(table)) return written;
  guard::call([&] {
    RowUpdater updater;
    if (!updater.open(table, msgs_columns(numbers))) return;
    for (std::size_t i = 0; i < messages.size(); ++i) {
      CHECK_FOR_INTERRUPTS();
      const Claimed& message = *messages[i];
      if (row_state(updater.relation(), numbers, message, updater.old()) != RowState::kThere) continue;
      written[i] = updater.update(item_of(message), message.locked, [&](Datum* values, bool* nulls) {
        NewVersion version(values, nulls, numbers);
        change(i, version);
      });
    }
    updater.close();
  });
  return written;
}

}  // namespace mq
