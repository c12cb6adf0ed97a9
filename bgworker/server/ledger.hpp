// Ledger: what this transaction owes when it ends. Filled by the entry points, paid in the transaction
// callbacks, forgotten with the transaction.
//
//   before commit   lock the message that an ordered append follows; if that is going, link the channel (link.hpp);
//                   NOTIFY outside consumers; prolong leases that ran while the transaction did
//   before PREPARE  note the channels of ordered appends as loose: a lock would last until COMMIT PREPARED
//   after commit    lower the marks of the channel names whose messages it made due (marks.hpp); then wake the workers,
//                   and the launcher if it has something to look at; tell what was inserted and deleted to who keeps
//                   count (counts.hpp)
//
// A subtransaction that was rolled back leaves its entries, but for leases and counts: they are hints, and what they
// name is gone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>

#include "../message.hpp"
#include "postgres.hpp"

namespace mq::ledger {

// Messages of the channel may be due: wakes workers, and sends NOTIFY where mq.notify asks for it.
void wake(std::string_view channel_name);
// A message will be found at `position`: it was written, or became head of its channel.
void due(std::string_view channel_name, Position position);
// The lowest of those, by the key of the name (marks::key_of).
std::optional<Position> own_lowest(std::uint64_t name_key);
// Messages were appended to an ordered channel behind `predecessor`, which another transaction wrote.
void appended(std::int64_t channel_key, std::string_view channel_name, std::string_view channel_args,
              const Uuid& predecessor);
// The tail that this transaction appended to the channel itself, if any; and what it is now.
const Uuid* own_tail(std::int64_t channel_key);
void set_own_tail(std::int64_t channel_key, const Uuid& message);
// The append locks that this transaction took (locks.hpp); some of them may have gone with a subtransaction.
struct AppendLocks {
  std::unordered_set<std::int64_t> channels;
  bool folded = false;  // others are locked by partition
};
AppendLocks& append_locks();
// An ordered channel, by its key in marks.hpp, was empty; its first message is at `place`.
void was_empty(std::uint64_t mark_key, std::int64_t place);
// Messages that this transaction leased, at `leased_at`, for `lease`.
void leased(const Uuid& message, Micros leased_at, Micros lease);
// Rows that were inserted into a table or deleted from it (less than none), by channel name. One for each statement:
// it must not outlive the subtransaction.
struct Changed {
  std::int64_t rows = 0;
  bool ordered = false;
  bool delayed = false;  // ordered ones with delays of their own
};
class RowChanges {
 public:
  explicit RowChanges(Oid relation) : relation_(relation) {}
  void add(std::string_view channel_name, std::int64_t rows, bool ordered = false, bool delayed = false);

 private:
  const Oid relation_;
  std::string name_;
  Changed* sum_ = nullptr;  // of that name, in the ledger
};
// Somebody changes the table, and nobody knows how.
void changed_by_hand(Oid relation);
// This transaction has done so.
bool has_changed();
// The launcher should look at this database: the extension, or its handlers, have come, changed or gone.
void announce();

// A database is made, renamed or dropped: the launcher should look around.
void databases_changed();
// ALTER ROLE or ALTER DATABASE ... SET: workers of that database and role (InvalidOid: of all) should begin anew.
void settings_changed(Oid database, Oid role);

}  // namespace mq::ledger
