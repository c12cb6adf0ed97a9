#include "queue/running.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "pg/crash_point.hpp"
#include "pg/error.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/locks.hpp"
#include "pg/statement.hpp"
#include "pg/subtransactions.hpp"
#include "queue/limits.hpp"
#include "queue/low_water.hpp"
#include "queue/put_off.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/channel_use.hpp"
#include "shmem/leased_calls.hpp"
#include "shmem/receivers.hpp"
#include "shmem/requests.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "access/xact.h"
#include "utils/inval.h"
}

namespace mq::running {

namespace {

using shared::AskedFor;

// A message that waits comes back by itself after as long as it has waited, within these bounds.
constexpr Micros kLeastWait = 60 * kSecond;
constexpr Micros kMostWait = 3600 * kSecond;
// So many are made due for a worker, which handles them one after another, where one may be handled.
constexpr int kOneByOne = 64;
constexpr std::size_t kServed = 100;  // channels that a claim looks at
constexpr int kSwept = 100;           // that the sweep looks at

// How many messages of a channel this transaction has taken.
struct Taken {
  AskedFor channel;
  int messages = 0;
};

// Messages that a consumer outside has taken: with its subtransaction it has them no more. What a worker has taken it
// keeps, since it calls the handlers again that a rollback to its savepoint has undone.
struct Received {
  std::uint64_t key;
  SubTransactionId subtransaction;
  int messages;
};

// A channel that serve() has taken off the list of what is asked for.
struct Served {
  AskedFor channel;
  SubTransactionId subtransaction;
  bool looked = false;     // it was looked for messages that may be handled
  bool made_due = false;   // some are due, if this commits
  bool none_left = false;  // none waits any more, if this commits
  bool more = false;       // more channels were asked for than it looks at
  Micros since = 0;        // as set_waiting() has returned it
};

struct Notes {
  std::map<std::uint64_t, Taken> taken;
  std::vector<Received> received;  // a part of `taken`
  std::vector<Served> served;
  std::map<std::uint64_t, AskedFor> ended;
  std::map<std::uint64_t, AskedFor> put_off;
};

// Made by a transaction's first note, deleted at its end. A pointer, lest it be destroyed at exit.
Notes* open_notes = nullptr;

// For the transaction callbacks, as the next ones: no pg guard is there, so nothing may throw.
void wake(const AskedFor& channel) {
  shared::wake_workers(MyDatabaseId);
  const Micros now = GetCurrentTimestamp();
  if (shared::any_receivers()) shared::wake_receivers(channel.name_key, now, now, 1);
}

// Also where the channel is asked for already: who was woken may have looked at others only.
void ask(const AskedFor& channel) {
  if (shared::ask_for(channel)) wake(channel);
}

void end_served(const Served& one, bool committed) {
  if (!one.looked || (!committed && one.made_due)) {
    (void)shared::set_waiting(one.channel.key, true);
    ask(one.channel);
  } else if (one.more) {
    wake(one.channel);
  }
  if (committed && one.looked && one.none_left) shared::stop_waiting(one.channel.key, one.since);
}

// So many of the messages of the channel that this transaction has taken do not run any more.
void remove(Taken& taken, int messages) {
  taken.messages -= messages;
  if (shared::remove_running(taken.channel.key, messages)) ask(taken.channel);
}

// What a rolled-back subtransaction has made due is so no more: it is asked for again. What it has received does not
// run any more.
void subtransaction_ends(const SubtransactionEnd& end) {
  if (open_notes == nullptr) return;
  std::vector<Served>& served = open_notes->served;
  std::vector<Received>& received = open_notes->received;
  if (end.committed) {
    const auto hand_on = [&](auto& notes) {
      for (auto& one : notes)
        if (one.subtransaction == end.mine) one.subtransaction = end.parent;
    };
    hand_on(served);
    hand_on(received);
    return;
  }
  std::erase_if(received, [&](const Received& one) {
    if (one.subtransaction != end.mine) return false;
    if (one.messages > 0) remove(open_notes->taken.at(one.key), one.messages);
    return true;
  });
  std::erase_if(served, [&](const Served& one) {
    if (one.subtransaction != end.mine) return false;
    end_served(one, false);
    return true;
  });
}

enum class End { kCommitted, kPrepared, kAborted };

void end_transaction(End end) {
  const bool committed = end == End::kCommitted;
  // What is prepared is neither due nor undone: its channels stay waited for.
  if (end != End::kPrepared)
    for (const Served& one : open_notes->served) end_served(one, committed);
  MQ_CRASH_POINT_IF(!open_notes->taken.empty(), running_ends);
  for (const auto& [key, one] : open_notes->taken)
    if (shared::remove_running(key, one.messages)) ask(one.channel);
  MQ_CRASH_POINT_IF(!open_notes->taken.empty(), running_returned);
  if (committed) {
    for (const auto& [key, channel] : open_notes->ended)
      if (shared::is_waiting(key)) ask(channel);
    for (const auto& [key, channel] : open_notes->put_off) ask(channel);
  }
  delete open_notes;
  open_notes = nullptr;
}

void transaction_event(XactEvent event, void*) {
  if (open_notes == nullptr) return;
  switch (event) {
    case XACT_EVENT_PRE_PREPARE:
      guard::callback([] {
        if (std::any_of(open_notes->taken.begin(), open_notes->taken.end(),
                        [](const auto& one) { return one.second.messages > 0; }))
          throw Error(
              "0A000", "cannot PREPARE a transaction that has received messages of a channel with max_running_per_args",
              "They would not count until COMMIT PREPARED.", "COMMIT it, or take the limit of the channel away.");
      });
      break;
    case XACT_EVENT_COMMIT:
      end_transaction(End::kCommitted);
      break;
    case XACT_EVENT_ABORT:
      end_transaction(End::kAborted);
      break;
    case XACT_EVENT_PREPARE:
      end_transaction(End::kPrepared);
      break;
    default:
      break;
  }
}

Notes& notes() {
  static bool registered = false;
  if (!registered) {
    guard::call([] { RegisterXactCallback(transaction_event, nullptr); });
    at_subtransaction_end(subtransaction_ends);
    registered = true;
  }
  if (open_notes == nullptr) open_notes = new Notes();
  return *open_notes;
}

// None: the channel name has no such limit.
std::optional<int> limit_of(std::string_view channel_name) {
  if (!any_limits()) return std::nullopt;
  const ChannelLimits* limits = limits_of(channel_name);
  return limits == nullptr ? std::nullopt : limits->max_running_per_args;
}

std::uint64_t key_of(const Claimed& message) {
  return low_water::key_of(message.channel_name, message.channel_args);
}

AskedFor channel_of(const Claimed& message) {
  return {key_of(message), channel_key(message.channel_name, {}), message.channel_key};
}

int taken_here(std::uint64_t key) {
  if (open_notes == nullptr) return 0;
  const auto found = open_notes->taken.find(key);
  return found == open_notes->taken.end() ? 0 : found->second.messages;
}

// How many messages of each of these channels (by channel_key) are leased.
std::map<std::int64_t, int> leased(std::string_view channel_name, const std::vector<std::int64_t>& channel_keys) {
  static Statement select(
      "SELECT m.channel_key, m.lease, m.attempt_at > $3 FROM $S.mq_msgs m"
      " WHERE m.channel_name = $1 AND m.lease IS NOT NULL AND m.channel_key = ANY ($2) AND m.after_message_id IS NULL",
      {TEXTOID, INT8ARRAYOID, TIMESTAMPTZOID});
  const OwnerScope scope;
  const SpiConnection spi;
  ArrayParam keys(INT8OID, channel_keys.size());
  for (const std::int64_t key : channel_keys) keys.add(Int64GetDatum(key));
  const Rows rows = select.run({text_datum(channel_name), keys.datum(), TimestampTzGetDatum(GetCurrentTimestamp())});
  std::map<std::int64_t, int> found;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int64_t token = DatumGetInt64(rows.get(i, 2));
    if (token > 0 ? shared::lease_has_call(token) : DatumGetBool(rows.get(i, 3)))
      ++found[DatumGetInt64(rows.get(i, 1))];
  }
  return found;
}

// Takes messages of one channel name; returns for each whether it may be handled.
std::vector<char> grant(std::span<const Claimed* const> messages, int most, bool one_by_one) {
  std::vector<char> granted(messages.size(), 1);
  if (!shared::available()) return std::vector<char>(messages.size(), 0);
  struct Want {
    AskedFor channel;
    int messages = 0;  // that are wanted, then those that it gets
    int free = 0;      // of those that this transaction has taken, which are over
    int added = 0;     // that it takes beyond those
    int others = 0;    // of other transactions
  };
  std::map<std::uint64_t, Want> wanted;
  std::vector<std::int64_t> keys;
  for (const Claimed* message : messages) {
    if (message->ordered) continue;
    const AskedFor channel = channel_of(*message);
    Want& want = wanted.try_emplace(channel.key, Want{channel}).first->second;
    want.free = one_by_one ? taken_here(channel.key) : 0;
    if (++want.messages > want.free) keys.push_back(channel.channel_key);
  }
  if (keys.empty()) return granted;
  Notes& open = notes();
  // The notes have room first, so that nothing fails between the count and its note.
  for (const auto& [key, want] : wanted) open.taken.try_emplace(key, Taken{want.channel});
  if (!one_by_one) open.received.reserve(open.received.size() + wanted.size());
  const std::string_view name = messages.front()->channel_name;
  const locks::SlotsLock alone(channel_key(name, {}));
  for (auto& [key, want] : wanted) {
    int& mine = open.taken.at(key).messages;
    want.added = shared::add_running(key, std::max(0, want.messages - want.free), most);
    mine += want.added;
    want.others = shared::running(key).value_or(most) - mine;
  }
  MQ_CRASH_POINT(running_added);
  const std::map<std::int64_t, int> rows = leased(name, keys);
  for (auto& [key, want] : wanted) {
    int& mine = open.taken.at(key).messages;
    const auto found = rows.find(want.channel.channel_key);
    const int room = std::max(0, most - want.others - (found == rows.end() ? 0 : found->second));
    if (const int beyond = std::min(want.added, mine - room); beyond > 0) {
      // Who has looked meanwhile has found this one running.
      if (shared::remove_running(key, beyond)) ask(want.channel);
      mine -= beyond;
      want.added -= beyond;
    }
    want.messages = one_by_one ? mine : want.added;
    if (!one_by_one && want.added > 0) open.received.push_back({key, GetCurrentSubTransactionId(), want.added});
  }
  for (std::size_t i = 0; i < messages.size(); ++i)
    if (!messages[i]->ordered && wanted.at(key_of(*messages[i])).messages-- <= 0) granted[i] = 0;
  MQ_CRASH_POINT(running_granted);
  return granted;
}

}  // namespace

std::size_t take(std::span<const Claimed* const> messages, bool one_by_one) {
  if (messages.empty()) return 0;
  const std::optional<int> most = limit_of(messages.front()->channel_name);
  if (!most) return messages.size();
  const std::vector<char> granted = grant(messages, *most, one_by_one);
  return static_cast<std::size_t>(std::find(granted.begin(), granted.end(), 0) - granted.begin());
}

void take(Batch& messages) {
  if (!any_limits()) return;
  Batch kept;
  for (std::size_t first = 0; first < messages.size();) {
    std::size_t end = first;
    std::vector<const Claimed*> of_name;
    while (end < messages.size() && messages[end].channel_name == messages[first].channel_name)
      of_name.push_back(&messages[end++]);
    const std::optional<int> most = limit_of(messages[first].channel_name);
    const std::vector<char> granted = most ? grant(of_name, *most, false) : std::vector<char>(of_name.size(), 1);
    for (std::size_t i = 0; i < of_name.size(); ++i)
      if (granted[i] != 0) kept.push_back(*of_name[i]);
    first = end;
  }
  messages = std::move(kept);
}

std::map<std::uint64_t, int> count(const Batch& messages) {
  std::map<std::uint64_t, int> counts;
  if (!any_limits()) return counts;
  for (const Claimed& message : messages)
    if (!message.ordered && limit_of(message.channel_name)) ++counts[key_of(message)];
  return counts;
}

void give_back(const std::map<std::uint64_t, int>& taken, const Batch& left) {
  if (taken.empty() || open_notes == nullptr) return;
  const std::map<std::uint64_t, int> counts = count(left);
  for (const auto& [key, messages] : taken) {
    const auto kept = counts.find(key);
    const auto noted = open_notes->taken.find(key);
    if (noted == open_notes->taken.end()) continue;
    const int removed = std::min(messages - (kept == counts.end() ? 0 : kept->second), noted->second.messages);
    if (removed <= 0) continue;
    remove(noted->second, removed);
    int rest = removed;  // the last ones that were received
    for (auto one = open_notes->received.rbegin(); one != open_notes->received.rend() && rest > 0; ++one) {
      if (one->key != key) continue;
      const int given = std::min(rest, one->messages);
      one->messages -= given;
      rest -= given;
    }
  }
}

std::size_t put_off(Batch& messages, Micros now, bool one_by_one) {
  if (!any_limits() || !shared::available()) return 0;
  std::vector<PutOff> wait;
  std::vector<char> stays(messages.size(), 1);
  for (std::size_t first = 0; first < messages.size();) {
    const std::string_view name = messages[first].channel_name;
    std::size_t end = first;
    std::vector<std::int64_t> keys;
    for (; end < messages.size() && messages[end].channel_name == name; ++end)
      if (!messages[end].ordered) keys.push_back(messages[end].channel_key);
    const std::optional<int> most = limit_of(name);
    if (most && !keys.empty()) {
      // First the counts, then the rows: what is leased meanwhile is in both.
      std::map<std::uint64_t, int> room;
      for (std::size_t i = first; i < end; ++i)
        if (!messages[i].ordered)
          if (const std::uint64_t key = key_of(messages[i]); !room.contains(key))
            room[key] = *most - shared::running(key).value_or(*most) + (one_by_one ? taken_here(key) : 0);
      const std::map<std::int64_t, int> rows = leased(name, keys);
      std::map<std::uint64_t, int> before;
      for (std::size_t i = first; i < end; ++i) {
        const Claimed& message = messages[i];
        if (message.ordered) continue;
        const std::uint64_t key = key_of(message);
        const auto found = rows.find(message.channel_key);
        const int left = room[key] - (found == rows.end() ? 0 : found->second) - (one_by_one ? 0 : before[key]);
        if (left > 0) {
          ++before[key];
          continue;
        }
        stays[i] = 0;
        const Micros until = now + std::clamp(now - message.due(), kLeastWait, kMostWait);
        wait.push_back({&message, std::min(until, message.expires_at)});
        shared::set_waiting(key, true);
        notes().put_off.try_emplace(key, channel_of(message));
      }
    }
    first = end;
  }
  return wait.empty() ? 0 : mq::put_off(wait, stays, messages);
}

void ended(std::string_view channel_name, std::string_view channel_args, std::int64_t channel_key_of_it) {
  if (!shared::available() || !limit_of(channel_name)) return;
  const std::uint64_t key = low_water::key_of(channel_name, channel_args);
  notes().ended.try_emplace(key, AskedFor{key, channel_key(channel_name, {}), channel_key_of_it});
}

namespace {

// Makes up to so many messages of the channel due that were put off; returns how many.
std::size_t make_due(std::string_view channel_name, std::int64_t channel_key, int limit) {
  const OwnerScope scope;
  const SpiConnection spi;
  return release_put_off(channel_name, channel_key, limit);
}

// Whether messages of the channel are put off still: more than could be made due, or rows that others hold.
bool any_left(std::string_view channel_name, const AskedFor& channel) {
  static Statement select(
      "SELECT 1 FROM $S.mq_msgs m WHERE m.channel_name = $1 AND m.channel_key = $2 AND m.throttled_at IS NOT NULL"
      " LIMIT 1",
      {TEXTOID, INT8OID});
  const OwnerScope scope;
  const SpiConnection spi;
  return !select.run({text_datum(channel_name), Int64GetDatum(channel.channel_key)}).empty();
}

// channel_key() of all names with such a limit, sorted.
std::vector<std::int64_t> limited_keys() {
  std::vector<std::int64_t> keys;
  for (const std::string& name : limited_names())
    if (limit_of(name)) keys.push_back(channel_key(name, {}));
  std::sort(keys.begin(), keys.end());
  return keys;
}

// Channels whose names have no such limit: nobody waits for room in them, unless a limit has been set meanwhile.
void drop(std::span<Served*> unlimited) {
  if (unlimited.empty()) return;
  for (Served* one : unlimited) one->since = shared::set_waiting(one->channel.key, true);
  guard::call([] { AcceptInvalidationMessages(); });
  const std::vector<std::int64_t> limited = limited_keys();
  for (Served* one : unlimited) {
    if (std::binary_search(limited.begin(), limited.end(), one->channel.name_key))
      ask(one->channel);
    else
      shared::stop_waiting(one->channel.key, one->since);
    one->looked = true;
  }
}

// Makes messages due of channels of one name.
std::size_t serve(std::string_view name, int most, std::span<Served*> channels, bool one_by_one) {
  // First the counts, then the rows, as in put_off().
  std::vector<int> room;
  std::vector<std::int64_t> channel_keys;
  for (Served* one : channels) {
    one->since = shared::set_waiting(one->channel.key, true);
    room.push_back(most - shared::running(one->channel.key).value_or(most));
    channel_keys.push_back(one->channel.channel_key);
  }
  const std::map<std::int64_t, int> rows = leased(name, channel_keys);
  std::size_t sum = 0;
  for (std::size_t i = 0; i < channels.size(); ++i) {
    Served& one = *channels[i];
    const auto found = rows.find(one.channel.channel_key);
    const int left = room[i] - (found == rows.end() ? 0 : found->second);
    if (left > 0) {
      const auto limit = static_cast<std::size_t>(one_by_one ? std::max(left, kOneByOne) : left);
      const std::size_t due = make_due(name, one.channel.channel_key, static_cast<int>(limit));
      one.made_due = due > 0;
      one.none_left = due < limit && !any_left(name, one.channel);
      sum += due;
    }
    one.looked = true;
  }
  return sum;
}

}  // namespace

std::size_t serve(std::span<const std::string_view> channel_names, bool one_by_one) {
  if (!shared::any_asked_for()) return 0;
  std::map<std::int64_t, std::string_view> names;
  std::vector<std::int64_t> keys;
  for (const std::string_view name : channel_names)
    if (limit_of(name)) names.emplace(channel_key(name, {}), name);
  for (const auto& [key, name] : names) keys.push_back(key);
  const std::vector<std::int64_t> limited = limited_keys();
  // The notes have room first, so that nothing fails between the list and its note.
  std::vector<Served>& served = notes().served;
  const std::size_t before = served.size();
  served.reserve(before + kServed);
  const std::vector<AskedFor> taken = shared::take_asked_for(keys, limited, kServed);
  if (taken.empty()) return 0;
  for (const AskedFor& channel : taken) served.push_back({channel, GetCurrentSubTransactionId()});
  served.back().more = taken.size() == kServed;
  std::map<std::int64_t, std::vector<Served*>> by_name;
  std::vector<Served*> unlimited;
  for (std::size_t i = before; i < served.size(); ++i) {
    const std::int64_t name_key = served[i].channel.name_key;
    (names.contains(name_key) ? by_name[name_key] : unlimited).push_back(&served[i]);
  }
  drop(unlimited);
  std::size_t due = 0;
  for (auto& [name_key, channels] : by_name) {
    const std::string_view name = names.at(name_key);
    if (const std::optional<int> most = limit_of(name))
      due += serve(name, *most, channels, one_by_one);
    else
      drop(channels);
  }
  // The others need nothing at the end: they are waited for.
  std::erase_if(served, [](const Served& one) { return one.looked && !one.made_due && !one.none_left && !one.more; });
  return due;
}

bool sweep() {
  // The channels of the name that have such messages, from a channel_key on.
  static Statement select(
      "WITH RECURSIVE k (channel_key, channel_args) AS ("
      "  (SELECT m.channel_key, m.channel_args FROM $S.mq_msgs m WHERE m.channel_name = $1 AND m.throttled_at IS NOT "
      "NULL"
      "      AND m.channel_key > $2 ORDER BY m.channel_name, m.channel_key LIMIT 1)"
      "  UNION ALL"
      "  SELECT n.channel_key, n.channel_args FROM k CROSS JOIN LATERAL ("
      "    SELECT m.channel_key, m.channel_args FROM $S.mq_msgs m WHERE m.channel_name = $1 AND m.throttled_at IS NOT "
      "NULL"
      "       AND m.channel_key > k.channel_key ORDER BY m.channel_name, m.channel_key LIMIT 1) AS n)"
      " SELECT k.channel_key, k.channel_args FROM k LIMIT $3",
      {TEXTOID, INT8OID, INT8OID});
  // Where the last sweep of this process ended. Only this function sets them. A pointer, as above.
  static auto* last_name = new std::string();
  static std::int64_t last_key = INT64_MIN;
  if (!shared::available() || !any_limits()) return false;
  std::vector<std::string> names;
  // With a rate as well it is unknown which of the two has put a message off: those come back by themselves.
  for (std::string& name : limited_names())
    if (const ChannelLimits* limits = limits_of(name);
        limits != nullptr && limits->max_running_per_args && !limits->rate_per_args)
      names.push_back(std::move(name));
  if (names.empty()) return false;
  auto name = std::lower_bound(names.begin(), names.end(), *last_name);
  if (name == names.end() || *name != *last_name) last_key = INT64_MIN;
  if (name == names.end()) name = names.begin();
  const Rows rows = select.run({text_datum(*name), Int64GetDatum(last_key), Int64GetDatum(kSwept)});
  std::vector<std::int64_t> keys;
  for (std::size_t i = 0; i < rows.size(); ++i) keys.push_back(DatumGetInt64(rows.get(i, 1)));
  bool found_some = false;
  if (!keys.empty()) {
    const int most = limit_of(*name).value_or(0);
    const std::map<std::int64_t, int> leases = leased(*name, keys);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::uint64_t key = low_water::key_of(*name, text_view(rows.get(i, 2)));
      const auto found = leases.find(keys[i]);
      const int room = most - shared::running(key).value_or(most) - (found == leases.end() ? 0 : found->second);
      if (room > 0) found_some = make_due(*name, keys[i], room) > 0 || found_some;
      shared::set_waiting(key, true);
    }
  }
  const bool more = rows.size() == kSwept;
  last_key = more ? keys.back() : INT64_MIN;
  *last_name = more || std::next(name) == names.end() ? (more ? *name : names.front()) : *std::next(name);
  return found_some;
}

}  // namespace mq::running
