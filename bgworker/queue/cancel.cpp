#include "queue/cancel.hpp"

#include <algorithm>
#include <list>
#include <set>
#include <span>
#include <unordered_set>
#include <utility>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/row_lockers.hpp"
#include "pg/session.hpp"
#include "pg/statement.hpp"
#include "pg/subtransactions.hpp"
#include "queue/cancel_notes.hpp"
#include "queue/claimed_rows.hpp"
#include "queue/commit_actions.hpp"
#include "queue/settle.hpp"
#include "shmem/callers.hpp"
#include "shmem/cancels.hpp"
#include "shmem/leased_calls.hpp"
#include "shmem/row_claims.hpp"

extern "C" {
#include "access/xact.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
}

namespace mq {

namespace {

using shared::RunningMessage;

// A running message that this transaction cancels.
struct Running {
  RunningMessage message;
  int open;   // its open cancel; -1: none
  bool done;  // mq_cancel has returned it; else it may still turn out to have ended
};

struct RunningMessages {
  BySubtransaction<Running> entries;
  // Filled before the commit, since after it nothing may fail.
  std::vector<RunningMessage> messages;
  std::vector<int> open;
};

// Made by a transaction's first one, deleted at its end. A pointer, lest it be destroyed at exit.
RunningMessages* running = nullptr;

void forget() {
  delete running;
  running = nullptr;
}

void close_all() {
  for (const auto& [subtransaction, entry] : running->entries.entries())
    if (entry.open >= 0) shared::close_cancel(entry.open);
}

void before_commit() {
  for (const auto& [subtransaction, entry] : running->entries.entries()) {
    running->messages.push_back(entry.message);
    if (entry.open >= 0) running->open.push_back(entry.open);
  }
}

void transaction_event(XactEvent event, void*) {
  if (running == nullptr) return;
  switch (event) {
    case XACT_EVENT_PRE_PREPARE:
      guard::callback([] {
        throw Error("0A000", "cannot PREPARE a transaction that has cancelled messages which are being handled");
      });
      break;
    case XACT_EVENT_PRE_COMMIT:
      guard::callback(before_commit);
      break;
    case XACT_EVENT_COMMIT:  // other transactions see the changes by now
      shared::cancelled(running->messages, running->open);
      forget();
      break;
    case XACT_EVENT_ABORT:
      close_all();
      forget();
      break;
    default:
      break;
  }
}

void subtransaction_ends(const SubtransactionEnd& end) {
  if (running == nullptr) return;
  if (!end.committed)
    for (const auto& [subtransaction, entry] : running->entries.entries())
      if (subtransaction == end.mine && entry.open >= 0) shared::close_cancel(entry.open);
  running->entries.ends(end);
}

void add_running(const RunningMessage& message, int open) {
  static bool registered = false;
  if (!registered) {
    guard::call([] { RegisterXactCallback(transaction_event, nullptr); });
    at_subtransaction_end(subtransaction_ends);
    registered = true;
  }
  if (running == nullptr) running = new RunningMessages();
  running->entries.add({message, open, false});
}

// With another token it is another cancel: since the first one the message was leased.
bool is_open_here(const RunningMessage& message) {
  return running != nullptr &&
         std::any_of(running->entries.entries().begin(), running->entries.entries().end(), [&](const auto& entry) {
           const RunningMessage& open = entry.second.message;
           return entry.second.open >= 0 && open.id == message.id && open.seq == message.seq &&
                  open.token == message.token;
         });
}

// The message has ended otherwise, unless an earlier call in this transaction has cancelled it.
void withdraw(const Uuid& id) {
  if (running == nullptr) return;
  running->entries.remove_if([&](const Running& entry) {
    if (entry.done || entry.message.id != id) return false;
    if (entry.open >= 0) shared::close_cancel(entry.open);
    return true;
  });
}

void keep(const Uuid& id) {
  if (running == nullptr) return;
  running->entries.for_each([&](Running& entry) { entry.done = entry.done || entry.message.id == id; });
}

void wait_for(const VirtualTransactionId& transaction) {
  guard::call([&] { (void)VirtualXactLock(transaction, true); });
}

// Opens a cancel of the message. False: another transaction has one; with `waits` it has been waited for.
bool open(const RunningMessage& message, bool waits = true) {
  if (is_open_here(message)) return true;
  const shared::Opened opened = shared::open_cancel(message);
  switch (opened.result) {
    case shared::Opened::kOther:
      if (waits) wait_for(opened.other);
      return false;
    case shared::Opened::kFull:
      throw Error("53400", "too many messages that are being handled are to be cancelled at once",
                  "Shared memory has no room for more.", "Cancel fewer of them in a transaction.");
    default:
      add_running(message, opened.number);
      return true;
  }
}

#define PENDING                                  \
  "m.id = ANY ($1) AND m.attempt_at IS NOT NULL" \
  " AND (m.commit_interval IS NULL OR m.attempt_at > pg_catalog.clock_timestamp())"

// Several messages are locked together as long as nothing has to be waited for. Otherwise the first half is,
// then the second: so they are locked in the order of their ids, lest two sessions that cancel the same ones
// wait for each other. Nothing is moved before all are locked: moving locks rows of other messages.
class Cancel {
 public:
  explicit Cancel(std::string_view why) : why_(why) {}

  std::vector<Uuid> run(std::span<const Uuid> ids) {
    lock(ids);
    if (!settlement_.dead_letters.empty()) settle(settlement_);
    return {done_.begin(), done_.end()};
  }

 private:
  void lock(std::span<const Uuid> ids) {
    if (ids.size() > 1) {
      if (lock_together(ids)) return;
      lock(ids.first(ids.size() / 2));
      lock(ids.subspan(ids.size() / 2));
      return;
    }
    left_ = {ids.begin(), ids.end()};
    while (!left_.empty()) {
      (void)lock_free(true);
      if (left_.empty()) break;
      look_at_locked();
      guard::call([] { CHECK_FOR_INTERRUPTS(); });
    }
  }

  bool lock_together(std::span<const Uuid> ids) {
    static Statement others("SELECT 1 FROM $S.mq_msgs m WHERE " PENDING " LIMIT 1", {UUIDARRAYOID});
    SavepointOnly session;
    const std::set<Uuid> before = done_;
    const std::size_t locked = settlement_.dead_letters.size();
    left_ = {ids.begin(), ids.end()};
    session.set_savepoint();
    try {
      if (lock_free(false) && (left_.empty() || others.run({left()}).empty())) {
        (void)session.release_savepoint();
        return true;
      }
    } catch (...) {
      session.rollback_to_savepoint();
      throw;
    }
    session.rollback_to_savepoint();
    done_ = before;
    settlement_.dead_letters.resize(locked);
    return false;
  }

  Datum left() const { return uuid_array(std::vector<Uuid>(left_.begin(), left_.end())); }

  // The token of the leased call that has the message, as the row says; 0: none.
  static std::int64_t token_of(const Claimed& message, std::int64_t lease) {
    return message.held && lease > 0 && shared::lease_has_call(lease) ? lease : 0;
  }

  // Locks the messages that no other transaction has locked, to be moved. A worker may have claimed them without
  // a lock: it finds the row gone when it settles. False, without `waits`: another transaction would have to be
  // waited for.
  bool lock_free(bool waits) {
    static Statement lock("SELECT " CLAIMED_COLUMNS " FROM $S.mq_msgs m WHERE " PENDING
                          " ORDER BY m.id FOR UPDATE OF m SKIP LOCKED",
                          {UUIDARRAYOID});
    const Rows rows = lock.run({left()});
    Batch& batch = batches_.emplace_back();
    append(rows, batch);
    std::vector<VirtualTransactionId> others;  // asked before the notes: it closes its cancel after its commit
    for (const Claimed& message : batch) others.push_back(shared::canceller_of(message.id, message.seq));
    const std::unordered_set<Uuid, UuidHash> noted = cancel_notes::noted(batch);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const Claimed& message = batch[i];
      if (noted.contains(message.id)) {  // somebody has cancelled it already
        has_ended(message.id);
        continue;
      }
      bool null = false;
      const std::int64_t lease = DatumGetInt64(rows.get(i, kLeaseToken + 1, null));
      const RunningMessage here{message.id, message.seq, null ? 0 : token_of(message, lease)};
      if (VirtualTransactionIdIsValid(others[i])) {
        if (!waits) return false;
        wait_for(others[i]);
        continue;
      }
      if (here.token != 0) {
        if (!open(here, waits)) {
          if (!waits) return false;
          continue;
        }
        if (shared::leased_commit(here.token).ended) {  // the handler has done its work
          has_ended(message.id);
          continue;
        }
      } else if (shared::is_claimed_by_other(message.location)) {
        add_running(here, -1);
      }
      settlement_.dead_letters.push_back({.message = &message,
                                          .reason = cancel_notes::kReason,
                                          .error = Error(cancel_notes::kSqlstate, std::string(why_)),
                                          .charged = false});
      is_done(message.id);
    }
    return true;
  }

  // Looks once at each of the messages that another transaction had locked. Notes those that a call of a handler
  // holds; waits for one other holder. Drops those that have ended.
  void look_at_locked() {
    static Statement select(
        "SELECT m.id, m.seq, m.lease, m.channel_name, m.ctid,"
        " EXISTS (SELECT 1 FROM $S.mq_cancelled c WHERE c.message_id = m.id AND c.seq = m.seq)"
        " FROM $S.mq_msgs m WHERE " PENDING " ORDER BY m.id",
        {UUIDARRAYOID});
    const Rows rows = select.run({left()});
    std::set<Uuid> there;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Uuid id = uuid_of(rows.get(i, 1));
      const std::int64_t seq = DatumGetInt64(rows.get(i, 2));
      there.insert(id);
      bool null = false;
      const std::int64_t lease = DatumGetInt64(rows.get(i, 3, null));
      if (DatumGetBool(rows.get(i, 6)))
        has_ended(id);
      else
        look({id, seq, null || lease <= 0 || !shared::lease_has_call(lease) ? 0 : lease}, text_view(rows.get(i, 4)),
             rows.get(i, 5));
    }
    const std::set<Uuid> left = left_;
    for (const Uuid& id : left)
      if (!there.contains(id)) has_ended(id);
  }

  void look(const RunningMessage& message, std::string_view channel_name, Datum location) {
    const Lockers lockers = lockers_of(Extension::msgs(), location);
    const shared::LeasedCommit leased =
        message.token != 0 ? shared::leased_commit(message.token) : shared::LeasedCommit();
    for (int i = 0; i < lockers.count; ++i) {
      const Locker& locker = lockers.lockers[i];
      if (TransactionIdEquals(locker.transaction, GetTopTransactionIdIfAny())) continue;
      const bool of_call = leased.backend != 0 && locker.pid == leased.backend;
      const shared::Holder holder = shared::holder(locker.pid, locker.transaction);
      if (!of_call && holder == shared::Holder::kStranger) {
        wait_for(locker.locked_in, location);
        return;
      }
      // Opened first, then looked at again: docs/internals/cancelling.md.
      if (!is_open_here(message)) {
        (void)open(message);
        return;
      }
      const bool settles = of_call ? leased.settling == locker.transaction : holder == shared::Holder::kSettles;
      if (settles) {
        wait_for(locker.locked_in, location);
        return;
      }
      if (leased.ended) {  // its worker has locked the row and is about to settle
        has_ended(message.id);
        return;
      }
    }
    if (lockers.count == 0 || !is_open_here(message)) return;
    cancel_notes::write(message.id, message.seq, why_);
    commit_actions::wake(channel_name);
    commit_actions::ended({&message.id, 1});
    is_done(message.id);
  }

  void is_done(Uuid id) {
    left_.erase(id);
    done_.insert(id);
    keep(id);
  }

  void has_ended(Uuid id) {
    left_.erase(id);
    withdraw(id);
  }

  static void wait_for(TransactionId transaction, Datum location) {
    const Oid table = Extension::msgs();
    auto* row = reinterpret_cast<ItemPointer>(DatumGetPointer(location));
    guard::call([&] {
      const Relation relation = RelationIdGetRelation(table);
      XactLockTableWait(transaction, relation, row, XLTW_Lock);
      RelationClose(relation);
    });
  }
  static void wait_for(const VirtualTransactionId& transaction) { mq::wait_for(transaction); }

  std::set<Uuid> left_, done_;
  std::list<Batch> batches_;  // what the settlement refers to
  Settlement settlement_;
  const std::string_view why_;
};

}  // namespace

std::vector<Uuid> cancel(const std::vector<Uuid>& ids, std::string_view why) {
  return Cancel(why).run(ids);
}

}  // namespace mq
