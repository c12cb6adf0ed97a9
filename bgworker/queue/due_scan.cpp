#include "queue/due_scan.hpp"

#include <algorithm>
#include <climits>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/row_locks.hpp"
#include "pg/versions.hpp"
#include "queue/fair_scan.hpp"
#include "queue/skip_scan.hpp"
#include "shmem/row_claims.hpp"

extern "C" {
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/nbtree.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"
}

namespace mq {

namespace {

constexpr int kFirstRoom = 512;  // rows, before the array grows

// One scan. For the body of guard::call(): after an error the transaction cleans up.
class Scan {
 public:
  // False: the table has policies of row-level security (asked once its lock is held, so that none can
  // come), and nothing is open. `heeds`: whether they matter.
  bool open(Oid table, Oid index, const AttrNumber* numbers, Micros now, bool heeds = true) {
    numbers_ = numbers;
    now_ = now;
    table_ = table_open(table, RowShareLock);
    if (heeds && table_->rd_rel->relrowsecurity) {
      table_close(table_, NoLock);
      return false;
    }
    index_ = index_open(index, AccessShareLock);
    slot_ = table_slot_create(table_, nullptr);
    locked_ = table_slot_create(table_, nullptr);
    PushActiveSnapshot(GetLatestSnapshot());
    command_ = GetCurrentCommandId(true);
    mode_ = row_locks::avoiding() ? LockTupleExclusive : LockTupleNoKeyExclusive;
    scan_ = nullptr;
    return true;
  }

  // Goes to the due messages of the channel name from a position on, in mq_msgs_due.
  void find_due(Datum channel_name, Position from) {
    ScanKeyEntryInitialize(&keys_[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, F_TEXTEQ, channel_name);
    rescan(add_due(1, 2, from));
  }

  // Goes to those of one priority, in mq_msgs_priority.
  void find_prioritized(Datum channel_name, int priority, Position from) {
    ScanKeyEntryInitialize(&keys_[0], 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID, F_TEXTEQ, channel_name);
    ScanKeyEntryInitialize(&keys_[1], 0, 2, BTEqualStrategyNumber, InvalidOid, InvalidOid, F_INT2EQ,
                           Int16GetDatum(static_cast<std::int16_t>(priority)));
    rescan(add_due(2, 3, from));
  }

  // In the index that holds the messages of this priority (index_of()).
  void find_heads(Datum channel_name, int priority, Position from) {
    if (priority == 0)
      find_due(channel_name, from);
    else
      find_prioritized(channel_name, priority, from);
  }

  // Goes to the messages of the channel behind a sequence number, in mq_msgs_chain.
  void find_behind(std::int64_t channel_key, std::int64_t seq) {
    ScanKeyEntryInitialize(&keys_[0], 0, 1, BTEqualStrategyNumber, InvalidOid, InvalidOid, F_INT8EQ,
                           Int64GetDatum(channel_key));
    ScanKeyEntryInitialize(&keys_[1], 0, 2, BTGreaterStrategyNumber, InvalidOid, InvalidOid, F_INT8GT,
                           Int64GetDatum(seq));
    rescan(2);
  }

  bool next() { return index_getnext_slot(scan_, ForwardScanDirection, slot_); }

  // Of the row that next() has read.
  Position position() {
    bool null = false;
    const Datum attempt_at = slot_getattr(slot_, numbers_[kAttemptAt], &null);
    return {DatumGetTimestampTz(attempt_at), DatumGetInt64(slot_getattr(slot_, numbers_[kSeq], &null))};
  }

  // Locks the row and reads it. False: another session has it, or it has changed and is_due() says
  // no to the new version.
  template <class F>
  bool lock(LockedRow& row, F&& is_due) {
    TM_FailureData failure;
    ItemPointerData location = slot_->tts_tid;
    const TM_Result result =
        table_tuple_lock(table_, &location, GetActiveSnapshot(), locked_, command_, mode_, LockWaitSkip,
                         TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS | TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
    if (result != TM_Ok) return false;
    if (failure.traversed && !is_due(locked_)) return false;
    (void)copy(locked_, row);
    row.locked = true;
    return true;
  }

  // Whether another worker has claimed the row that next() has read, or had a moment ago.
  bool seems_claimed() const { return shared::seems_claimed_by_other(location_of(slot_->tts_tid)); }

  // The same for a head of the channel name; false as well where another worker has claimed it.
  bool lock_head(LockedRow& row, Datum channel_name) {
    return !shared::is_claimed_by_other(location_of(slot_->tts_tid)) && lock(row, [&](TupleTableSlot* slot) {
      return is_due(slot) && is(slot, kChannelName, channel_name) && after(slot) == Uuid();
    });
  }

  // Reads the row without locking it, if it is one that may be claimed so: nobody has locked it, and
  // nothing but its removal can become of it while it is handled. It counts only once it is claimed.
  bool read_unlocked(LockedRow& row) {
    if (!TTS_IS_BUFFERTUPLE(slot_)) return false;
    const HeapTuple tuple = reinterpret_cast<HeapTupleTableSlot*>(slot_)->tuple;
    if ((tuple->t_data->t_infomask & HEAP_XMAX_INVALID) == 0) return false;
    for (const ClaimColumn column : {kAfter, kCommitInterval, kExpiresAt, kLeaseToken, kDedupKey})
      if (!heap_attisnull(tuple, numbers_[column], RelationGetDescr(table_))) return false;
    const bool fair = copy(slot_, row);
    if (fair || DatumGetInt32(row.values[kAttemptsLeft]) <= 0) return false;
    row.locked = false;
    return true;
  }

  // Locks a row that was read without. False: another session has it, or it has changed.
  bool lock_read(LockedRow& row) {
    TM_FailureData failure;
    ItemPointerData location = row.location;
    row.locked = table_tuple_lock(table_, &location, scan_->xs_snapshot, locked_, command_, mode_, LockWaitSkip, 0,
                                  &failure) == TM_Ok;
    return row.locked;
  }

  // Whether the row is still as it was read without a lock.
  bool is_there(const LockedRow& row) {
    ItemPointerData location = row.location;
    return table_tuple_fetch_row_version(table_, &location, GetActiveSnapshot(), locked_);
  }

  // Whether the row that next() has read, or another version, is due.
  bool is_due(TupleTableSlot* slot) const {
    bool null = false;
    const Datum attempt_at = slot_getattr(slot, numbers_[kAttemptAt], &null);
    return !null && DatumGetTimestampTz(attempt_at) <= now_;
  }
  bool is(TupleTableSlot* slot, ClaimColumn column, Datum text) const {
    bool null = false;
    const Datum stored = slot_getattr(slot, numbers_[column], &null);
    return DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID, stored, text));
  }
  // Of an unordered message, or a head: the nil uuid.
  Uuid after(TupleTableSlot* slot) const {
    Uuid id;
    bool null = false;
    const Datum after = slot_getattr(slot, numbers_[kAfter], &null);
    if (!null) memcpy(id.bytes.data(), DatumGetUUIDP(after)->data, UUID_LEN);
    return id;
  }
  // Two channels may have one key.
  bool is_of(TupleTableSlot* slot, const ChainSearch& search) const {
    return is(slot, kChannelName, search.channel_name) && is(slot, kChannelArgs, search.channel_args);
  }
  Datum column(ClaimColumn column, bool& null) const { return slot_getattr(slot_, numbers_[column], &null); }
  TupleTableSlot* slot() const { return slot_; }

  void close() {
    if (scan_ != nullptr) index_endscan(scan_);
    PopActiveSnapshot();
    ExecDropSingleTupleTableSlot(slot_);
    ExecDropSingleTupleTableSlot(locked_);
    index_close(index_, NoLock);
    table_close(table_, NoLock);
  }

 private:
  // Returns the row's `fair`, which a LockedRow has not.
  bool copy(TupleTableSlot* slot, LockedRow& row) {
    // A copy, since the page may be pruned, and the values point into it.
    HeapTuple tuple = ExecCopySlotHeapTuple(slot);
    Datum values[MaxHeapAttributeNumber];
    bool nulls[MaxHeapAttributeNumber];
    heap_deform_tuple(tuple, RelationGetDescr(table_), values, nulls);
    for (int i = 0; i < kColumns; ++i) {
      row.values[i] = values[numbers_[i] - 1];
      row.nulls[i] = nulls[numbers_[i] - 1];
    }
    row.location = slot->tts_tid;
    row.dropped = false;
    return DatumGetBool(values[numbers_[kFair] - 1]);
  }

  // Adds keys for attempt_at <= now and (attempt_at, seq) >= from, as the executor builds it. `column`: the
  // number of attempt_at in the index. Returns how many keys there are then.
  int add_due(int keys, AttrNumber column, Position from) {
    ScanKeyEntryInitialize(&keys_[keys], 0, column, BTLessEqualStrategyNumber, InvalidOid, InvalidOid, F_TIMESTAMPTZ_LE,
                           TimestampTzGetDatum(now_));
    ScanKeyEntryInitialize(&row_[0], SK_ROW_MEMBER, column, BTGreaterEqualStrategyNumber, InvalidOid, InvalidOid,
                           F_TIMESTAMPTZ_CMP, TimestampTzGetDatum(from.attempt_at));
    ScanKeyEntryInitialize(&row_[1], SK_ROW_MEMBER | SK_ROW_END, static_cast<AttrNumber>(column + 1),
                           BTGreaterEqualStrategyNumber, InvalidOid, InvalidOid, F_BTINT8CMP, Int64GetDatum(from.seq));
    ScanKeyData& header = keys_[keys + 1];
    memset(&header, 0, sizeof header);
    header.sk_flags = SK_ROW_HEADER;
    header.sk_attno = column;
    header.sk_strategy = BTGreaterEqualStrategyNumber;
    header.sk_argument = PointerGetDatum(row_);
    return keys + 2;
  }

  void rescan(int keys) {
    if (scan_ == nullptr) scan_ = server::begin_index_scan(table_, index_, GetActiveSnapshot(), keys);
    index_rescan(scan_, keys_, keys, nullptr, 0);
  }

  const AttrNumber* numbers_;
  Micros now_;
  Relation table_;
  Relation index_;
  TupleTableSlot* slot_;
  TupleTableSlot* locked_;
  IndexScanDesc scan_;
  CommandId command_;
  LockTupleMode mode_;
  ScanKeyData row_[2];
  ScanKeyData keys_[4];
};

Oid index_of(int priority) {
  return Extension::get().relation(priority == 0 ? "mq_msgs_due" : "mq_msgs_priority");
}

// Rows in memory of the context that was current, as many as are found.
class RowArray {
 public:
  // There is room for one more row; `most` is a bound for all.
  LockedRow& next(int most) {
    if (count_ == room_) {
      room_ = std::min(most, std::max(kFirstRoom, 2 * room_));
      const Size size = sizeof(LockedRow) * static_cast<Size>(room_);
      rows_ = static_cast<LockedRow*>(rows_ == nullptr ? palloc_extended(size, MCXT_ALLOC_HUGE)
                                                       : repalloc_huge(rows_, size));
    }
    return rows_[count_];
  }
  void keep() { ++count_; }
  int count() const { return count_; }
  LockedRow& row(int at) { return rows_[at]; }
  // Closes the gaps, from a row on.
  void remove_dropped(int from) {
    const LockedRow* const end =
        std::remove_if(rows_ + from, rows_ + count_, [](const LockedRow& row) { return row.dropped; });
    count_ = static_cast<int>(end - rows_);
  }
  std::span<const LockedRow> rows() const { return {rows_, static_cast<std::size_t>(count_)}; }

 private:
  LockedRow* rows_ = nullptr;
  int count_ = 0;
  int room_ = 0;
};

// Rows that were read without a lock and are not claimed yet, by their index in the array.
struct Unlocked {
  static constexpr int kMost = 512;

  void add(int at) { rows[count++] = at; }

  std::uint64_t released = 0;  // row_claims_released(), from before the scan's snapshot
  int count = 0;
  int rows[kMost];
};

// Claims the rows, drops those that other workers have claimed, and locks those that there is no
// room to note. If another worker has released claims meanwhile, it may have removed some of them:
//   1. this worker   reads how often claims were released, then takes its snapshot
//      worker B      removes a row, commits, releases its claim of it
//      this worker   reads the row, which its snapshot shows, and claims it
//   So each row is looked at again with a new snapshot. A row that goes after that is not removed
//   twice either: settling finds it gone (removal.cpp).
void claim_pending(Scan& scan, Unlocked& pending, RowArray& found) {
  std::uint64_t locations[Unlocked::kMost];
  shared::RowClaim claims[Unlocked::kMost];
  for (int i = 0; i < pending.count; ++i) locations[i] = location_of(found.row(pending.rows[i]).location);
  const std::uint64_t released = shared::claim_rows({locations, static_cast<std::size_t>(pending.count)}, claims);
  const bool look_again = released != pending.released;
  if (look_again) PushActiveSnapshot(GetLatestSnapshot());
  for (int i = 0; i < pending.count; ++i) {
    LockedRow& row = found.row(pending.rows[i]);
    if (claims[i] == shared::RowClaim::kNoRoom)
      row.dropped = !scan.lock_read(row);
    else
      row.dropped = claims[i] == shared::RowClaim::kOther || (look_again && !scan.is_there(row));
  }
  if (look_again) PopActiveSnapshot();
  found.remove_dropped(pending.rows[0]);
  pending.count = 0;
}

}  // namespace

std::optional<DueRows> lock_due(Datum channel_name, int priority, Micros now, Position from, bool behind, int limit,
                                bool unlocked) {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = index_of(priority);
  const AttrNumber* numbers = attribute_numbers(table);
  unlocked = unlocked && !row_locks::avoiding();
  RowArray found;
  Unlocked pending;
  Position first{};
  bool any = false;
  const bool asked = guard::call([&] {
    Scan scan;
    pending.released = unlocked ? shared::row_claims_released() : 0;
    if (!scan.open(table, index, numbers, now)) return false;
    scan.find_heads(channel_name, priority, from);
    for (bool more = true; more && found.count() < limit;) {
      while (found.count() < limit && pending.count < Unlocked::kMost && (more = scan.next())) {
        if (!any || behind) {
          const Position position = scan.position();
          if (!any) first = position;
          any = true;
          if (behind && position == from) continue;
        }
        CHECK_FOR_INTERRUPTS();
        if (scan.seems_claimed()) continue;
        LockedRow& row = found.next(limit);
        if (unlocked && scan.read_unlocked(row)) {
          pending.add(found.count());
          found.keep();
          continue;
        }
        if (scan.lock_head(row, channel_name)) found.keep();
      }
      if (pending.count > 0) claim_pending(scan, pending, found);
    }
    scan.close();
    return true;
  });
  if (!asked) return std::nullopt;
  return DueRows{found.rows(), any ? std::optional(first) : std::nullopt};
}

std::optional<std::span<const LockedRow>> lock_sample(Datum channel_name, std::int64_t start, Micros now, Position from,
                                                      int channels, Effort& effort) {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_fair");
  const AttrNumber* numbers = attribute_numbers(table);
  RowArray found;
  const bool asked = guard::call([&] {
    Scan scan;
    if (!scan.open(table, index, numbers, now)) return false;
    FairScan entries;
    entries.open(table, index, channel_name, from);
    std::optional<std::int64_t> current;
    entries.walk(start, [&](std::int64_t channel_key, Position position) {
      CHECK_FOR_INTERRUPTS();
      if (current != channel_key) {
        if (channels-- == 0) return FairScan::kEnd;
        current = channel_key;
      }
      if (position.attempt_at > now) return FairScan::kChannel;
      if (!entries.read(scan.slot()) || !scan.lock_head(found.next(effort.most()), channel_name))
        return FairScan::kEntry;
      found.keep();
      effort.add();
      return effort.is_over() ? FairScan::kEnd : FairScan::kChannel;
    });
    entries.close();
    scan.close();
    return true;
  });
  return asked ? std::optional(found.rows()) : std::nullopt;
}

std::optional<std::span<const LockedRow>> lock_runs(const std::vector<ChainSearch>& searches, Micros now, int limit) {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_chain");
  const AttrNumber* numbers = attribute_numbers(table);
  const auto most = static_cast<int>(std::min<std::size_t>(searches.size() * static_cast<std::size_t>(limit), INT_MAX));
  RowArray found;
  const bool asked = guard::call([&] {
    Scan scan;
    if (!scan.open(table, index, numbers, now)) return false;
    for (const ChainSearch& search : searches) {
      Uuid previous = search.head;
      scan.find_behind(search.channel_key, search.behind);
      for (int n = 0; n < limit && scan.next();) {
        const auto is_next = [&](TupleTableSlot* slot) {
          return scan.is_due(slot) && scan.after(slot) == previous && scan.is_of(slot, search);
        };
        if (!scan.is_of(scan.slot(), search)) continue;
        CHECK_FOR_INTERRUPTS();
        LockedRow& row = found.next(most);
        if (!is_next(scan.slot()) || !scan.lock(row, is_next)) break;
        found.keep();
        memcpy(previous.bytes.data(), DatumGetUUIDP(row.values[kId])->data, UUID_LEN);
        ++n;
      }
    }
    scan.close();
    return true;
  });
  return asked ? std::optional(found.rows()) : std::nullopt;
}

Position first_head(std::string_view channel_name, int priority, Position from) {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = index_of(priority);
  const AttrNumber* numbers = attribute_numbers(table);
  const Datum name = text_datum(channel_name);
  Position first = kEnd;
  guard::call([&] {
    Scan scan;
    (void)scan.open(table, index, numbers, DT_NOEND, false);
    scan.find_heads(name, priority, from);
    if (scan.next()) first = scan.position();
    scan.close();
  });
  return first;
}

std::vector<FirstMessage> first_behind(const std::vector<ChainSearch>& searches) {
  const Extension& extension = Extension::get();
  const Oid table = extension.relation("mq_msgs");
  const Oid index = extension.relation("mq_msgs_chain");
  const AttrNumber* numbers = attribute_numbers(table);
  std::vector<FirstMessage> found(searches.size());
  const std::size_t count = guard::call([&] {
    Scan scan;
    std::size_t n = 0;
    (void)scan.open(table, index, numbers, 0, false);
    for (std::size_t i = 0; i < searches.size(); ++i) {
      scan.find_behind(searches[i].channel_key, searches[i].behind);
      CHECK_FOR_INTERRUPTS();
      bool more = scan.next();
      while (more && !scan.is_of(scan.slot(), searches[i])) more = scan.next();
      if (!more) continue;
      FirstMessage& message = found[n++];
      bool null = false;
      message.search = i;
      memcpy(message.id.bytes.data(), DatumGetUUIDP(scan.column(kId, null))->data, UUID_LEN);
      message.seq = DatumGetInt64(scan.column(kSeq, null));
      message.head = scan.after(scan.slot()) == Uuid();
      message.location = scan.slot()->tts_tid;
      const Datum attempt_at = scan.column(kAttemptAt, null);
      message.attempt_at = null ? std::nullopt : std::optional<Micros>(DatumGetTimestampTz(attempt_at));
    }
    scan.close();
    return n;
  });
  found.resize(count);
  return found;
}

}  // namespace mq
