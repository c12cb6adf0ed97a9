// Consuming from outside the server, by receipts: mq_receive, mq_ack, mq_nack and mq_extend.
//
// Sessions call them through mq.c; a transactional handler may not call mq_receive. A receipt is the
// token of a lease (queue/lease.hpp): one for a call of mq_receive. The other three touch only what
// has that token and whose lease has not run out. The file owns no state.
//
// While mq_receive waits it holds no lock on anything of mq's: each look is in a savepoint, which is
// rolled back if the look finds nothing. So nobody waits for a session that waits.

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "entries.h"
#include "handlers/policy.hpp"
#include "handlers/results.hpp"
#include "pg/arguments.hpp"
#include "pg/client_wait.hpp"
#include "pg/crash_point.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/kept.hpp"
#include "pg/locks.hpp"
#include "pg/refused_rows.hpp"
#include "pg/result_set.hpp"
#include "pg/session.hpp"
#include "pg/settings.h"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/channel_slots.hpp"
#include "queue/commit_actions.hpp"
#include "queue/consumer_claim.hpp"
#include "queue/current_call.hpp"
#include "queue/due.hpp"
#include "queue/find.hpp"
#include "queue/handler_of.hpp"
#include "queue/lease.hpp"
#include "queue/settle.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/consumers.hpp"
#include "shmem/receivers.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "utils/jsonb.h"
}

namespace mq {

namespace {

constexpr int kMostReceived = 100000;
// How soon a waiting session looks again where other sessions hold all that is due. Doubled each time,
// up to mq.poll_interval. Without shared memory it looks so often whatever there is.
constexpr Micros kShortWait = kSecond / 10;
constexpr Micros kLongWait = 60 * kSecond;  // of a session that keeps no time

struct Request {
  Value channel_names;
  int batch_size;
  Micros lease;
  Micros wait;
};

// The ids of an array: as they are given; in that order, each once; sorted, as rows are locked.
struct Ids {
  explicit Ids(const Value& array) {
    std::unordered_set<Uuid, UuidHash> seen;
    const std::vector<Datum> all = elements(array, "ids");
    for (const Datum datum : all) {
      given.push_back(uuid_of(datum));
      if (seen.insert(given.back()).second) in_order.push_back(given.back());
    }
    sorted = in_order;
    std::sort(sorted.begin(), sorted.end());
  }
  std::vector<Uuid> given, in_order, sorted;
};

std::int64_t token_of(const Value& value) {
  if (value.null) check::fail_null("lease");
  return DatumGetInt64(value.datum);
}

void add_ids(const Ids& ids, const Batch& batch, ResultSet& result) {
  std::unordered_set<Uuid, UuidHash> found;
  for (const Claimed& message : batch) found.insert(message.id);
  for (const Uuid& id : ids.in_order)
    if (found.contains(id)) result.add({uuid_datum(id)});
}

// A channel name as mq_handlers, mq_paused and mq_channel_limits have it.
struct ChannelRules {
  bool paused;
  int priority;
  int max_workers;  // or max_running, if that is less; 0: no limit
};

std::vector<ChannelRules> rules_of(const std::vector<std::string>& names) {
  static Statement select(
      "SELECT EXISTS (SELECT 1 FROM $S.mq_paused p WHERE p.channel_name = n.name), COALESCE(h.priority, 0),"
      "       COALESCE(LEAST(h.most, (SELECT l.max_running FROM $S.mq_channel_limits l WHERE l.channel_name = n.name)),"
      "                0)"
      "  FROM unnest($1) WITH ORDINALITY AS n (name, at) CROSS JOIN LATERAL ("
      "       SELECT max(h.priority) AS priority, min(h.max_workers) AS most FROM $S.mq_handlers h"
      "        WHERE h.channel_name = n.name) AS h"
      " ORDER BY n.at",
      {TEXTARRAYOID});
  ArrayParam array(TEXTOID, names.size());
  for (const std::string& name : names) array.add(text_datum(name));
  const Rows rows = select.run({array.datum()});
  std::vector<ChannelRules> rules;
  for (std::size_t i = 0; i < rows.size(); ++i)
    rules.push_back({DatumGetBool(rows.get(i, 1)), DatumGetInt32(rows.get(i, 2)), DatumGetInt32(rows.get(i, 3))});
  return rules;
}

void add_message(ResultSet& result, const Claimed& message, std::int64_t token) {
  const auto stored = [](const void* value) { return value == nullptr ? Param() : Param(PointerGetDatum(value)); };
  result.add({uuid_datum(message.id), text_datum(message.name), text_datum(message.channel_name),
              text_datum(message.channel_args), stored(message.payload_json), stored(message.payload_bytes),
              Int32GetDatum(message.attempts + 1), Int32GetDatum(message.attempts_left - 1),
              message.created_at ? Param(TimestampTzGetDatum(*message.created_at)) : Param(),
              BoolGetDatum(message.ordered), stored(message.headers), Int32GetDatum(message.priority),
              Int64GetDatum(token)});
}

// Looks for messages: what one call of mq_receive does, as often as it looks.
class Look {
 public:
  Look(const Request& request, ResultSet& result) : request_(request), result_(result) {}

  // Claims messages, leases them and adds them to the result. True: it has found some, or has put some off since
  // a limit lets none of their channels be handled now, and that is to be committed. `thorough`: mends
  // what it finds wrong, although there is no message behind it. Needs a transaction in which it can write.
  bool run(bool thorough);
  // After a look that has found nothing: when something will be due, as far as is known; kNever: nothing
  // is. `held`: something is due, but others hold it, or max_workers does.
  Micros next_due(bool& held);
  // After a look that has found messages: of which names more are due.
  std::vector<std::int64_t> more_due();

 private:
  std::vector<Source> sources(Claimer& claimer);
  void release_slots(const Claim& claim);
  void deliver(Batch& messages);

  const Request& request_;
  ResultSet& result_;
  ServerClock clock_;
  ChannelSlots slots_{true};
  std::vector<std::string> names_;   // of the last claim, without those that are paused
  std::set<std::string> taken_;      // names that this look has a slot of
  std::set<std::string> delivered_;  // names of which it has found messages
  bool more_ = false;
  bool left_notes_ = false;  // as Claimer has it, of the last claim
};

// The channel names that messages may be taken of now.
std::vector<Source> Look::sources(Claimer& claimer) {
  const std::vector<std::string> all =
      request_.channel_names.null ? channel_names() : names_of(request_.channel_names, "channel_names");
  const std::vector<ChannelRules> rules = rules_of(all);
  names_.clear();
  std::vector<std::pair<std::size_t, ChannelRules>> open;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (rules[i].paused) continue;
    open.emplace_back(names_.size(), rules[i]);
    names_.push_back(all[i]);
  }
  // What waits for room under a limit is not due before begin() has looked.
  if (std::any_of(open.begin(), open.end(), [](const auto& one) { return one.second.max_workers > 0; })) {
    const std::vector<std::string_view> asked(names_.begin(), names_.end());
    claimer.begin(asked);
  }
  std::vector<Source> sources;
  for (const auto& [at, rule] : open) {
    const std::string& name = names_[at];
    if (rule.max_workers > 0 && !taken_.contains(name)) {
      if (!is_due(name, clock_.now()) || !slots_.take(name, rule.max_workers, rule.max_workers)) continue;
      taken_.insert(name);
    }
    sources.push_back({name, request_.batch_size, rule.priority});
  }
  return sources;
}

void Look::release_slots(const Claim& claim) {
  for (const Claimed& message : claim.messages) taken_.erase(std::string(message.channel_name));
  for (const std::string& name : taken_) slots_.release(name);
  taken_.clear();
}

void Look::deliver(Batch& messages) {
  std::sort(messages.begin(), messages.end(), [](const Claimed& a, const Claimed& b) {
    if (a.priority != b.priority) return a.priority > b.priority;
    return a.attempt_at != b.attempt_at ? a.attempt_at < b.attempt_at : a.seq < b.seq;
  });
  const OwnerScope scope;
  const std::int64_t token = new_receipt(messages);
  const Micros now = clock_.now();
  std::vector<NewLease> leases;
  for (const Claimed& message : messages) {
    leases.push_back({&message, now + request_.lease, std::nullopt});
    commit_actions::leased(message.id, now, request_.lease, token);
    add_message(result_, message, token);
    delivered_.emplace(message.channel_name);
  }
  lease(leases, token);
  MQ_CRASH_POINT(receive_leased);
}

bool Look::run(bool thorough) {
  shared::note_poll();
  const OwnerScope scope;
  const SpiConnection spi;
  delivered_.clear();
  taken_.clear();
  ConsumerClaim consumer(clock_);
  Claim claim = consumer.run([&](Claimer& claimer) { return sources(claimer); }, request_.batch_size, thorough);
  MQ_CRASH_POINT_IF(!claim.messages.empty(), receive_claimed);
  release_slots(claim);
  more_ = claim.more_is_due;
  left_notes_ = consumer.left_notes();
  if (claim.messages.empty()) return claim.put_off > 0;
  deliver(claim.messages);
  return true;
}

Micros Look::next_due(bool& held) {
  const OwnerScope scope;
  const SpiConnection spi;
  const Micros now = clock_.now();
  Micros next = kNever;
  held = left_notes_;
  for (const std::string& name : names_) {
    std::optional<Micros> due = mq::next_due(name);
    if (due && *due <= now) {
      held = true;
      due = mq::next_due(name, now);
    }
    if (due) next = std::min(next, *due);
  }
  return next;
}

std::vector<std::int64_t> Look::more_due() {
  std::vector<std::int64_t> names;
  if (!more_) return names;
  const OwnerScope scope;
  const SpiConnection spi;
  for (const std::string& name : delivered_)
    if (is_due(name, clock_.now())) names.push_back(channel_key(name, {}));
  return names;
}

// The names that a receiver is woken for; none: all.
std::optional<std::vector<std::int64_t>> keys_of(const Value& channel_names) {
  if (channel_names.null) return std::nullopt;
  std::vector<std::int64_t> keys;
  for (const std::string& name : names_of(channel_names, "channel_names")) keys.push_back(channel_key(name, {}));
  return keys;
}

void receive(const Request& request, ResultSet& result) {
  Look look(request, result);
  if (request.wait == 0) {
    (void)look.run(true);
    return;
  }
  ServerClock clock;
  const Micros end = clock.steady() + request.wait;
  std::optional<shared::Receiver> receiver;
  if (shared::available()) receiver.emplace(keys_of(request.channel_names), request.batch_size);
  const bool woken = receiver && receiver->entered();
  Micros short_wait = kShortWait;
  SavepointOnly session;
  for (;;) {
    if (woken) receiver->begin_look();
    const bool last = clock.steady() >= end;
    session.set_savepoint();
    bool found = false, held = false;
    Micros next = kNever;
    try {
      found = look.run(last);
      if (found && woken && !receiver->is_alone()) receiver->leave_more(look.more_due());
      if (!found && !last && woken && receiver->is_keeper()) next = look.next_due(held);
    } catch (...) {
      session.rollback_to_savepoint();
      throw;
    }
    if (found || last) {
      (void)session.release_savepoint();
      MQ_CRASH_POINT_IF(found, receive_found);
      return;
    }
    session.rollback_to_savepoint();
    Micros sleep = end - clock.steady();
    if (!woken) {
      sleep = std::min(sleep, kShortWait);
    } else if (receiver->is_keeper()) {
      const Micros interval = Micros{mq_poll_interval} * 1000;
      const Micros now = clock.now();
      sleep = std::min(sleep, interval);
      if (held) {
        sleep = std::min(sleep, short_wait);
        short_wait = std::min(2 * short_wait, interval);
      } else {
        short_wait = kShortWait;
      }
      if (next != kNever) sleep = std::min(sleep, std::max<Micros>(next - now, 0));
      if (!receiver->may_sleep(now + sleep)) continue;
    } else {
      sleep = std::min(sleep, kLongWait);
      if (!receiver->may_sleep(kNever)) continue;
    }
    guard::call([] { InvalidateCatalogSnapshot(); });
    MQ_CRASH_POINT(receive_sleeps);
    sleep_on_latch(sleep, WaitFor::kReceive);
    MQ_CRASH_POINT(receive_woken);
    Extension::look_again();
  }
}

// What is registered for a message.
struct Registered {
  std::optional<Handler> handler;  // as far as settling asks for it; none: no handler takes its name
  bool limited;                    // its channel name has max_workers, or max_running
};

std::vector<Registered> registered_for(const Batch& messages) {
  static Statement select(
      "SELECT h.max_backoff, h.on_dead = 'block', h.keep,"
      "       EXISTS (SELECT 1 FROM $S.mq_handlers l WHERE l.channel_name = m.channel AND l.max_workers IS NOT NULL)"
      "       OR EXISTS (SELECT 1 FROM $S.mq_channel_limits l"
      "                   WHERE l.channel_name = m.channel AND l.max_running IS NOT NULL)"
      "  FROM unnest($1, $2) WITH ORDINALITY AS m (channel, name, at)"
      "  LEFT JOIN LATERAL " HANDLER_OF("h.max_backoff, h.on_dead, h.keep", "m.channel", "m.name") " AS h ON true"
      " ORDER BY m.at",
      {TEXTARRAYOID, TEXTARRAYOID});
  ArrayParam channels(TEXTOID, messages.size()), names(TEXTOID, messages.size());
  for (const Claimed& message : messages) {
    channels.add(text_datum(message.channel_name));
    names.add(text_datum(message.name));
  }
  const Rows rows = select.run({channels.datum(), names.datum()});
  std::vector<Registered> registered(messages.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    registered[i].limited = DatumGetBool(rows.get(i, 4));
    if (rows.is_null(i, 1)) continue;
    Handler& handler = registered[i].handler.emplace();
    handler.max_backoff = micros_of_interval(rows.get(i, 1));
    handler.block_on_dead = DatumGetBool(rows.get(i, 2));
    if (!rows.is_null(i, 3)) handler.keep = micros_of_interval(rows.get(i, 3));
  }
  return registered;
}

// A slot of these messages' channel names may be free now: who waits for that looks again.
void slots_freed(const Batch& messages, const std::vector<Registered>& registered) {
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < messages.size(); ++i)
    if (registered[i].limited) names.insert(messages[i].channel_name);
  const Micros now = GetCurrentTimestamp();
  for (const std::string_view name : names) {
    commit_actions::wake(name);
    commit_actions::due(name, 0, {now, INT64_MIN});
  }
}

// Throws 22023 unless the results are an array with an element for each id.
void check_results(const Value& results, std::size_t ids) {
  if (results.null) return;
  Jsonb* const json = guard::call([&] { return DatumGetJsonbP(results.datum); });
  const auto fail = [&](std::string_view rule) {
    const char* text = guard::call([&] { return JsonbToCString(nullptr, &json->root, VARSIZE(json)); });
    check::fail("results", text, rule);
  };
  if (!JB_ROOT_IS_ARRAY(json) || JB_ROOT_IS_SCALAR(json)) fail("must be an array");
  if (JB_ROOT_COUNT(json) != ids)
    fail(mq::format("must have an element for each of the {} ids; this has {}", ids, JB_ROOT_COUNT(json)));
}

// Settles the messages, as acknowledged, and what is kept of them. `results`: as check_results() has it.
void acknowledge(const Ids& ids, const Batch& messages, const Value& results) {
  const std::vector<Registered> registered = registered_for(messages);
  Settlement settlement;
  std::vector<const void*> given;
  std::unordered_map<Uuid, std::size_t, UuidHash> places;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Claimed& message = messages[i];
    settlement.removed.push_back(&message);
    Consumption& consumption = settlement.consumed.emplace_back(Consumption{&message});
    consumption.keep = registered[i].handler ? keep_of(message, *registered[i].handler) : message.keep;
    if (!consumption.keep || results.null) continue;
    if (given.empty()) {
      given = results_of(guard::call([&] { return result_to_keep(results.datum); }), Shape::kBatch, ids.given.size());
      for (std::size_t place = ids.given.size(); place-- > 0;) places[ids.given[place]] = place;
    }
    consumption.result = given[places.at(message.id)];
  }
  settle(settlement);
  slots_freed(messages, registered);
}

// The SQLSTATE of a failure that its consumer tells of.
std::string sqlstate_of(const Value& value) {
  if (value.null) return "P0001";  // as RAISE EXCEPTION has it
  const std::string_view state = text_view(value.datum);
  const auto fits = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z'); };
  if (state.size() != 5 || !std::all_of(state.begin(), state.end(), fits) || state.starts_with("00"))
    check::fail("sqlstate", state, "must be five digits or upper-case letters, and not of class 00");
  return std::string(state);
}

struct Refusal {
  Error error;
  std::optional<Micros> retry_in;
  bool dead;
};

void refuse(const Batch& messages, const Refusal& refusal) {
  ServerClock clock;
  const Micros now = clock.now();
  Settlement settlement;
  const std::vector<Registered> registered = registered_for(messages);
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const Claimed& message = messages[i];
    const Handler* handler = registered[i].handler ? &*registered[i].handler : nullptr;
    const Failure failure{&message, refusal.error, std::nullopt};
    commit_actions::wake(message.channel_name);
    if (!refusal.dead) {
      settle_failure(failure, handler, now, clock.random(), settlement, refusal.retry_in);
      continue;
    }
    settlement.failures.push_back(failure);
    settlement.dead_letters.push_back(
        {&message, "discarded", refusal.error, handler != nullptr && handler->block_on_dead});
  }
  settle(settlement);
  slots_freed(messages, registered);
}

void extend(const Batch& messages, Micros by) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = GREATEST(m.attempt_at, $2) WHERE m.id = ANY ($1)"
      " RETURNING m.id",
      {UUIDARRAYOID, TIMESTAMPTZOID});
  std::vector<Uuid> ids;
  for (const Claimed& message : messages) ids.push_back(message.id);
  const Rows rows = update.run({uuid_array(ids), TimestampTzGetDatum(GetCurrentTimestamp() + by)});
  if (rows.size() < messages.size()) throw refused("mq_msgs", "being changed");
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_receive_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_receive()");
    mq::refuse_in_handler("mq_receive");
    const mq::Value names = mq::argument(fcinfo, 0);
    if (!names.null) (void)mq::names_of(names, "channel_names");
    const int batch_size = mq::int_of(mq::argument(fcinfo, 1), "batch_size");
    mq::check::count("batch_size", batch_size, 1, mq::kMostReceived);
    const mq::Value lease = mq::argument(fcinfo, 2);
    const mq::Micros length = mq::interval_of(lease, "lease", GetCurrentTimestamp());
    mq::check::positive("lease", mq::interval_text(lease.datum), length);
    const mq::Micros wait = mq::interval_of(mq::argument(fcinfo, 3), "wait", GetCurrentTimestamp());
    if (wait > 0 && IsolationUsesXactSnapshot())
      throw mq::Error("25001", "mq_receive() cannot wait in a REPEATABLE READ or SERIALIZABLE transaction",
                      "It would go on with the snapshot from before the wait.", "Use READ COMMITTED, or no wait.");
    mq::ResultSet result(fcinfo);
    mq::receive({names, batch_size, length, wait}, result);
    return Datum{0};
  });
}

extern "C" Datum mq_ack_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_ack()");
    const mq::Ids ids(mq::argument(fcinfo, 0));
    const std::int64_t token = mq::token_of(mq::argument(fcinfo, 1));
    mq::check_results(mq::argument(fcinfo, 2), ids.given.size());
    mq::ResultSet result(fcinfo);
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::locks::lock_to_write(mq::Extension::msgs());
    const mq::Batch batch = mq::find_received(ids.sorted, token, true);
    if (batch.empty()) return Datum{0};
    MQ_CRASH_POINT(ack_found);
    mq::acknowledge(ids, batch, mq::argument(fcinfo, 2));
    MQ_CRASH_POINT(ack_settled);
    mq::add_ids(ids, batch, result);
    return Datum{0};
  });
}

extern "C" Datum mq_nack_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_nack()");
    const mq::Ids ids(mq::argument(fcinfo, 0));
    const std::int64_t token = mq::token_of(mq::argument(fcinfo, 1));
    const std::string error = mq::kept(mq::text_of(mq::argument(fcinfo, 2), "error"));
    mq::Refusal refusal{{mq::sqlstate_of(mq::argument(fcinfo, 3)), error}, {}, false};
    const mq::Value retry_in = mq::argument(fcinfo, 4);
    if (!retry_in.null) refusal.retry_in = mq::interval_of(retry_in, "retry_in", GetCurrentTimestamp());
    refusal.dead = mq::bool_of(mq::argument(fcinfo, 5), "dead");
    if (refusal.dead && !retry_in.null)
      mq::check::fail("retry_in", mq::interval_text(retry_in.datum), "must be NULL with dead => true");
    mq::ResultSet result(fcinfo);
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::locks::lock_to_write(mq::Extension::msgs());
    const mq::Batch batch = mq::find_received(ids.sorted, token, false);
    if (batch.empty()) return Datum{0};
    mq::refuse(batch, refusal);
    MQ_CRASH_POINT(nack_settled);
    mq::add_ids(ids, batch, result);
    return Datum{0};
  });
}

extern "C" Datum mq_extend_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_extend()");
    const mq::Ids ids(mq::argument(fcinfo, 0));
    const std::int64_t token = mq::token_of(mq::argument(fcinfo, 1));
    const mq::Micros by = mq::interval_of(mq::argument(fcinfo, 2), "by", GetCurrentTimestamp());
    mq::ResultSet result(fcinfo);
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    mq::locks::lock_to_write(mq::Extension::msgs());
    const mq::Batch batch = mq::find_received(ids.sorted, token, false);
    if (batch.empty()) return Datum{0};
    mq::extend(batch, by);
    mq::add_ids(ids, batch, result);
    return Datum{0};
  });
}
