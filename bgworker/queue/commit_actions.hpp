// Commit actions: what happens when this transaction ends.
//
// The functions and hooks that change messages, registrations or databases note here what they did.
// The server's transaction callbacks act on the notes, then drop them. Only this process sees them.
//
//   before COMMIT    locks the message that each ordered append follows, or links the channel if
//                    another transaction removes that message; starts leases again of which the
//                    transaction took a good part; tells outside consumers by NOTIFY
//   before PREPARE   notes the channels of ordered appends as headless: a row lock would last until
//                    COMMIT PREPARED. Refuses with 0A000 if room is reserved for sent messages
//   after COMMIT     adds to the row counts; tells the launcher what changed; lowers the low-water
//                    marks of channel names whose messages became due; then wakes workers and
//                    sessions that wait in mq_receive, mq_wait or mq_call
//
// A subtransaction that is rolled back takes its leases, row changes and channels that were empty
// with it. Its other notes stay: they are hints, and what they name is gone.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>

#include "pg/postgres.hpp"
#include "pg/types.hpp"
#include "shmem/low_water_marks.hpp"
#include "stats/row_counts.hpp"

namespace mq::commit_actions {

// Messages of the channel name may be due: wakes workers, and sends NOTIFY if mq.notify says so.
void wake(std::string_view channel_name);
// The same for new messages that only a handler of that name could want: no worker is woken if it has none.
void wake_handlers(std::string_view channel_name);
// Workers have something to look at, though no message is due.
void wake_workers();
// A message was written or retried, or became head: claims have to find it at `position`, and so have
// sessions that wait in mq_receive.
void due(std::string_view channel_name, int priority, Position position);
// Messages have ended: they were handled, removed, cancelled or moved to the dead letters. Wakes sessions that
// wait for them.
void ended(std::span<const Uuid> messages);
// Any message may have ended.
void any_ended();
// Whether ended() has to know which; costs the look at an atomic. False: nobody waits, and that some have ended
// is noted.
bool wants_ended();
// The lowest position that due() was given for a name, by its key (low_water::key_of).
std::optional<Position> own_lowest(std::uint64_t name_key);
// Messages were appended to an ordered channel behind another transaction's `predecessor`, which has the
// sequence number `seq`.
void appended(std::int64_t channel_key, std::string_view channel_name, std::string_view channel_args,
              const Uuid& predecessor, std::int64_t seq);
// The message that this transaction appended to the channel last; nullptr if it has appended none.
const Uuid* own_tail(std::int64_t channel_key);
void set_own_tail(std::int64_t channel_key, const Uuid& message);
// The append locks that this transaction took; a rolled-back subtransaction has released its own.
struct AppendLocks {
  std::unordered_set<std::int64_t> channels;  // keys
  bool by_partition = false;                  // all other channels are locked by partition
};
AppendLocks& append_locks();
// An ordered channel, by its key in low_water.hpp, was empty; its first message is at `seq`.
void was_empty(std::uint64_t mark_key, std::int64_t seq);
// The message was leased to an outside consumer at `leased_at`, for `lease` microseconds; the token as
// in lease.hpp.
void leased(const Uuid& message, Micros leased_at, Micros lease, std::int64_t token);
// The changes of one channel name in one table.
struct Changed {
  std::int64_t rows = 0;      // inserted minus deleted
  bool ordered = false;       // ordered messages were inserted
  bool delayed = false;       // ordered messages with delays of their own were inserted
  std::int64_t reserved = 0;  // rows for which room is reserved in the row counts; the end of their
                              // subtransaction or transaction releases it
};
// Notes rows that were inserted into a table, or deleted (`rows` below 0). Make one for each
// statement: it points into the notes of the current subtransaction and must not outlive that.
class RowChanges {
 public:
  explicit RowChanges(Oid relation) : relation_(relation) {}
  void add(std::string_view channel_name, std::int64_t rows, bool ordered = false, bool delayed = false);

 private:
  const Oid relation_;
  std::string name_;
  Changed* sum_ = nullptr;  // the note for name_
};
// The note of the current subtransaction about one channel name in one table, by its key. Valid until the
// next note, or the end of the subtransaction.
Changed& changes_of(Oid relation, std::int64_t name_key);
// What this transaction has noted of it in all subtransactions.
row_counts::Own own_changes(Oid relation, std::int64_t name_key);
// The table was changed in a way that is not counted: COMMIT drops its row counts.
void changed_by_hand(Oid relation);
bool was_changed_by_hand(Oid relation);
// Whether this transaction has noted row changes, or changes by hand.
bool has_changed();
// The extension or its handlers were changed: the launcher should look at this database.
void announce();
// A schedule was made, replaced, removed or changed by hand: a worker should read the timetable again.
void schedules_changed();
// A database was made, renamed or dropped: the launcher should look for databases.
void databases_changed();
// ALTER ROLE or ALTER DATABASE ... SET: the workers of that database and role (InvalidOid: of all)
// should be replaced.
void settings_changed(Oid database, Oid role);

}  // namespace mq::commit_actions
