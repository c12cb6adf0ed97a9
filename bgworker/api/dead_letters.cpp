// mq_redrive: sends dead letters again.
//
// Sessions and handlers call it through mq.c. It works in steps, in the caller's transaction. The
// file owns no state. Row locks hold the dead letters; those that other sessions have locked are
// passed over. A dead letter stays if a message with its id or its dedup_key is pending. One that waits
// for dead messages which are not sent again stays, too, with the reason 'prerequisite'.

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/refused_rows.hpp"
#include "pg/session.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/commit_actions.hpp"
#include "queue/dedup.hpp"
#include "queue/prerequisites.hpp"
#include "queue/removal.hpp"
#include "queue/sender.hpp"
#include "queue/topological.hpp"
#include "queue/wait_paths.hpp"
#include "shmem/channel_key.hpp"

namespace mq {

namespace {

constexpr int kStep = 10000;  // dead letters in a step
constexpr int kTries = 20;    // of a step, while other sessions send messages under its ids

// The conditions on the dead letters; a null Param sets none.
struct Selection {
  Param ids, channel_name, died_after, died_before;
  Param numbers = {};  // values of dead_no, in place of `ids`
};

// The columns of the statements in take(), counted from 1. kBlocks: mq_msgs has a row with the id.
enum {
  kId = 1,
  kBackoff,
  kChannel,
  kArgs,
  kOrdered,
  kName,
  kJson,
  kBytes,
  kDedupKey,
  kNumber,
  kBlocks,
  kHeaders,
  kPriority,
  kKeep,
  kAfter
};

// Locks and returns the next dead letters behind the dead_no `behind`, in the order in which they
// died. Leaves out those whose message is pending.
Rows take(const Selection& which, std::int64_t behind) {
#define LETTERS                                                                                                \
  "SELECT d.id, d.retry_backoff, d.channel_name, d.channel_args, d.ordered, COALESCE(d.name, d.channel_name)," \
  "       d.payload_json, d.payload_bytes, d.dedup_key, d.dead_no,"                                            \
  "       EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = d.id), d.headers, d.priority, d.keep, d.after"       \
  "  FROM $S.mq_dead d"                                                                                        \
  " WHERE ($1 IS NULL OR d.channel_name = $1) AND ($2 IS NULL OR d.died_at >= $2)"                             \
  "   AND ($3 IS NULL OR d.died_at < $3) AND d.dead_no > $4"                                                   \
  "   AND NOT EXISTS (SELECT 1 FROM $S.mq_msgs m WHERE m.id = d.id AND m.attempt_at IS NOT NULL)"
#define STEP " LIMIT $5 FOR UPDATE SKIP LOCKED"
  static Statement all(LETTERS " ORDER BY d.dead_no" STEP, {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID});
  // `+ 0`: the planner sorts. Otherwise it might search the whole index on dead_no for the ids.
  static Statement named(LETTERS " AND d.id = ANY ($6) ORDER BY d.dead_no + 0" STEP,
                         {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID, UUIDARRAYOID});
  static Statement numbered(LETTERS " AND d.dead_no = ANY ($6) ORDER BY d.dead_no" STEP,
                            {TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, INT8OID, INT8ARRAYOID});
  std::vector<Param> params{which.channel_name, which.died_after, which.died_before, Int64GetDatum(behind),
                            Int64GetDatum(kStep)};
  if (which.ids.null && which.numbers.null) return all.run(params);
  params.push_back(which.numbers.null ? which.ids : which.numbers);
  return (which.numbers.null ? named : numbered).run(params);
}

NewMessage message_of(const Rows& dead_letters, std::size_t i, int retries) {
  const auto column = [&](int n) {
    Value value;
    value.datum = dead_letters.get(i, n, value.null);
    return value;
  };
  NewMessage message;
  message.id = column(kId);
  message.delay = {interval_datum(0), false};
  message.retries = {Int32GetDatum(retries), false};
  message.retry_backoff = column(kBackoff);
  message.channel_name = column(kChannel);
  message.channel_args = column(kArgs);
  message.ordered = column(kOrdered);
  message.name = column(kName);
  message.payload_json = column(kJson);
  message.payload_bytes = column(kBytes);
  message.dedup_key = column(kDedupKey);
  message.headers = column(kHeaders);
  message.priority = column(kPriority);
  message.keep = column(kKeep);
  return message;
}

// What the dead letters of a step wait for, and the order in which they can be sent: each behind those of
// them that it waits for. Those that wait for one another, or for a dead message that is not of the
// step, are not in the order.
struct Plan {
  std::vector<std::size_t> order;
  std::vector<std::vector<Uuid>> after;  // by dead letter
  prerequisites::States states;          // of what they wait for
};

Plan plan_of(const Rows& dead_letters) {
  Plan plan;
  plan.after.resize(dead_letters.size());
  std::vector<Uuid> ids;
  for (std::size_t i = 0; i < dead_letters.size(); ++i) {
    if (dead_letters.is_null(i, kAfter)) continue;
    for (const Datum id : elements({dead_letters.get(i, kAfter), false}, "after")) plan.after[i].push_back(uuid_of(id));
    ids.insert(ids.end(), plan.after[i].begin(), plan.after[i].end());
  }
  if (ids.empty()) {
    for (std::size_t i = 0; i < dead_letters.size(); ++i) plan.order.push_back(i);
    return plan;
  }
  plan.states = prerequisites::states_of(ids);
  std::unordered_map<Uuid, std::size_t, UuidHash> of_the_step;
  for (std::size_t i = 0; i < dead_letters.size(); ++i) of_the_step.emplace(uuid_of(dead_letters.get(i, kId)), i);
  std::vector<std::vector<std::size_t>> needs(dead_letters.size());
  std::vector<bool> excluded(dead_letters.size(), false);
  for (std::size_t i = 0; i < dead_letters.size(); ++i)
    for (const Uuid& id : plan.after[i]) {
      if (!plan.states.dead.contains(id)) continue;
      const auto found = of_the_step.find(id);
      if (found == of_the_step.end())
        excluded[i] = true;
      else
        needs[i].push_back(found->second);
    }
  plan.order = topological_order(needs, excluded);
  return plan;
}

// Makes a dead message that blocks its ordered channel (on_dead => 'block') pending again, with
// its sequence number. `waits`: until other messages have been handled. False: the row is gone.
bool send_in_place(const NewMessage& message, bool waits) {
  static Statement send(
      "UPDATE $S.mq_msgs m SET created_at = pg_catalog.now(), attempts = $2,"
      "       attempt_at = CASE WHEN $11 THEN 'infinity' ELSE pg_catalog.now() END,"
      "       due_at = CASE WHEN $11 THEN pg_catalog.now() END,"
      "       attempt = 0, retry_backoff = $3, lease = NULL, message_name = $4, message_json = $5, message_bytes = $6,"
      "       dedup_key = $7, headers = $8, priority = $9, keep = $10, fair = true"
      " WHERE m.id = $1 AND m.attempt_at IS NULL RETURNING m.attempt_at, m.seq, m.after_message_id = $N",
      {UUIDOID, INT4OID, INTERVALOID, TEXTOID, JSONBOID, BYTEAOID, TEXTOID, JSONBOID, INT2OID, INTERVALOID, BOOLOID});
  static Statement still("SELECT 1 FROM $S.mq_msgs m WHERE m.id = $1 AND m.attempt_at IS NULL", {UUIDOID});
  const auto param = [](const Value& value) { return value.null ? Param() : Param(value.datum); };
  const Rows rows =
      send.run({message.id.datum, Int32GetDatum(DatumGetInt32(message.retries.datum) + 1), message.retry_backoff.datum,
                message.name.datum, param(message.payload_json), param(message.payload_bytes), param(message.dedup_key),
                param(message.headers), param(message.priority), param(message.keep), BoolGetDatum(waits)});
  if (rows.empty()) {
    if (may_refuse(Extension::msgs()) && !still.run({message.id.datum}).empty())
      throw refused("mq_msgs", "being changed");
    return false;
  }
  const std::string_view channel_name = text_view(message.channel_name.datum);
  commit_actions::wake(channel_name);
  if (DatumGetBool(rows.get(0, 3)))
    commit_actions::due(channel_name, 0, {DatumGetTimestampTz(rows.get(0, 1)), DatumGetInt64(rows.get(0, 2))});
  return true;
}

bool is_taken(const NewMessage& message) {
  const std::string_view name = text_view(message.channel_name.datum);
  const std::string_view args = text_view(message.channel_args.datum);
  return find_pending({channel_key(name, args), name, args, text_view(message.dedup_key.datum)}, false).has_value();
}

// Sends the dead letters of a step in their order: those without a dedup_key together, those with
// one singly, since its key may be taken.
class Redrive {
 public:
  Redrive(int retries, const Plan& plan) : retries_(retries), plan_(plan) {}

  void add(const Rows& dead_letters, std::size_t i) {
    const Uuid id = uuid_of(dead_letters.get(i, kId));
    if (sent_.contains(id)) return;  // another dead letter with this id is sent
    const std::vector<Uuid>& after = plan_.after[i];
    if (std::any_of(after.begin(), after.end(),
                    [&](const Uuid& other) { return plan_.states.dead.contains(other) && !sent_.contains(other); }))
      return;
    NewMessage message = message_of(dead_letters, i, retries_);
    message.after = &after;
    const bool blocks = DatumGetBool(dead_letters.get(i, kBlocks)) && DatumGetBool(dead_letters.get(i, kOrdered));
    if (blocks || !message.dedup_key.null) send();
    if (!message.dedup_key.null && is_taken(message)) return;
    if (blocks && in_place(message)) {
      // Sent.
    } else if (!message.dedup_key.null) {
      remove_blocking({id});
      Sender one(Sender::Json::kJsonb, false);
      one.add(message);
      if (one.send_once() != id) return;
    } else {
      together_.push_back(message);
    }
    sent_.insert(id);
    removed_.add(dead_letters.get(i, kNumber));
  }

  bool has_sent(const Uuid& id) const { return sent_.contains(id); }

  std::int64_t finish() {
    static Statement remove("DELETE FROM $S.mq_dead d WHERE d.dead_no = ANY ($1) RETURNING d.channel_name",
                            {INT8ARRAYOID});
    send();
    const Rows gone = remove.run({removed_.datum()});
    // take() has locked all. A dead letter that stayed would be sent again by the next call.
    if (gone.size() < sent_.size()) throw refused("mq_dead", "being removed");
    check_sent();
    commit_actions::RowChanges changes(Extension::dead());
    for (std::size_t i = 0; i < gone.size(); ++i) changes.add(text_view(gone.get(i, 1)), -1);
    return static_cast<std::int64_t>(sent_.size());
  }

 private:
  bool in_place(const NewMessage& message) {
    const Uuid id = uuid_of(message.id.datum);
    std::vector<Prerequisite> waits;
    std::vector<Uuid> others;
    for (const Uuid& other : *message.after) {
      if (!sent_.contains(other) && !plan_.states.pending.contains(other)) continue;
      waits.push_back({id, other});
      others.push_back(other);
    }
    // It joins the tail of its channel rather than stand in the way of what it waits for.
    if (!waits.empty() && wait_for_message(others, id)) return false;
    if (!send_in_place(message, !waits.empty())) return false;
    if (!waits.empty()) prerequisites::wait_for(waits, {});
    return true;
  }

  // The dead letters are deleted. Throws 27000 if a trigger, rule or policy kept a message out.
  void check_sent() const {
    static Statement find("SELECT pg_catalog.count(*) FROM $S.mq_msgs m WHERE m.id = ANY ($1)", {UUIDARRAYOID});
    if (!may_refuse(Extension::msgs())) return;
    ArrayParam ids(UUIDOID, sent_.size());
    for (const Uuid& id : sent_) ids.add(uuid_datum(id));
    const Rows found = find.run({ids.datum()});
    const auto count = static_cast<std::int64_t>(sent_.size());
    if (DatumGetInt64(found.get(0, 1)) < count) throw refused("mq_msgs", "being added");
  }

  void send() {
    if (together_.empty()) return;
    Sender sender(Sender::Json::kJsonb, false);
    for (const NewMessage& message : together_) sender.add(message);
    // A dead message may have left a row that blocks its channel. Waits for a session that has
    // locked it.
    remove_blocking(sender.ids());
    sender.send();
    together_.clear();
  }

  const int retries_;
  const Plan& plan_;
  std::vector<NewMessage> together_;
  std::unordered_set<Uuid, UuidHash> sent_;
  ArrayParam removed_{INT8OID};
};

// The ids of these dead letters under which messages are pending by now.
std::unordered_set<Uuid, UuidHash> pending_of(const Rows& dead_letters) {
  static Statement pending("SELECT m.id FROM $S.mq_msgs m WHERE m.id = ANY ($1) AND m.attempt_at IS NOT NULL",
                           {UUIDARRAYOID});
  ArrayParam ids(UUIDOID, dead_letters.size());
  for (std::size_t i = 0; i < dead_letters.size(); ++i) ids.add(dead_letters.get(i, kId));
  const Rows rows = pending.run({ids.datum()});
  std::unordered_set<Uuid, UuidHash> found;
  for (std::size_t i = 0; i < rows.size(); ++i) found.insert(uuid_of(rows.get(i, 1)));
  return found;
}

bool is_id_in_use(const Error& error) {
  return error.sqlstate == "23505" && error.constraint == "mq_msgs_pkey";
}

// The numbers of dead letters that were not sent since they wait for dead messages.
using Left = std::vector<std::int64_t>;

// Sends the dead letters; returns how many, and adds to `left`. The race with S, another session that sends a message
// under the id of a dead letter:
//
//   1  mq_redrive: take() finds no message with the id.
//   2  S:          inserts one.
//   3  mq_redrive: its INSERT waits for S, by a primary key, and fails with 23505 when S commits.
//                  It rolls the step back, and repeats it without the ids that are pending by now.
std::int64_t send_dead_letters(const Rows& dead_letters, int retries, Left& left) {
  std::unordered_set<Uuid, UuidHash> pending;
  SavepointOnly session;
  for (int tries = 1;; ++tries) {
    session.set_savepoint();
    try {
      const Plan plan = plan_of(dead_letters);
      Redrive step(retries, plan);
      for (const std::size_t i : plan.order)
        if (!pending.contains(uuid_of(dead_letters.get(i, kId)))) step.add(dead_letters, i);
      const std::int64_t sent = step.finish();
      (void)session.release_savepoint();
      for (std::size_t i = 0; i < dead_letters.size(); ++i) {
        const Uuid id = uuid_of(dead_letters.get(i, kId));
        if (!plan.after[i].empty() && !step.has_sent(id) && !pending.contains(id))
          left.push_back(DatumGetInt64(dead_letters.get(i, kNumber)));
      }
      return sent;
    } catch (const Error& error) {
      session.rollback_to_savepoint();
      if (tries == kTries || !is_id_in_use(error)) throw;
    }
    pending = pending_of(dead_letters);
  }
}

// Makes one step; false: it was the last. Its own SPI connection frees the rows that it has read.
bool redrive_step(const Selection& which, int retries, std::int64_t& behind, std::int64_t& sent, Left& left) {
  const SpiConnection spi;
  const Rows dead_letters = take(which, behind);
  if (dead_letters.empty()) return false;
  sent += send_dead_letters(dead_letters, retries, left);
  if (dead_letters.size() < kStep) return false;
  behind = DatumGetInt64(dead_letters.get(dead_letters.size() - 1, kNumber));
  return true;
}

// Sends all that are selected; returns how many. Adds to `left`.
std::int64_t redrive(const Selection& which, int retries, Left& left) {
  std::int64_t behind = PG_INT64_MIN;
  std::int64_t sent = 0;
  while (redrive_step(which, retries, behind, sent, left)) {
  }
  return sent;
}

Param array_of(const Left& left) {
  ArrayParam numbers(INT8OID, left.size());
  for (const std::int64_t number : left) numbers.add(Int64GetDatum(number));
  return numbers.datum();
}

// They would die at once: their dead letters say so from now on.
void mark_left(const Left& left) {
  static Statement mark(
      "UPDATE $S.mq_dead d SET died_at = pg_catalog.clock_timestamp(), reason = 'prerequisite', sqlstate = $2,"
      "       error = pg_catalog.format('message %s, which it waited for, is dead',"
      "                 (SELECT o.id FROM $S.mq_dead o WHERE o.id = ANY (d.after) LIMIT 1)),"
      "       detail = NULL, hint = NULL, context = NULL"
      " WHERE d.dead_no = ANY ($1)"
      "   AND EXISTS (SELECT FROM $S.mq_dead o WHERE o.id = ANY (d.after))",
      {INT8ARRAYOID, TEXTOID});
  const SpiConnection spi;
  mark.run({array_of(left), text_datum(prerequisites::kPrerequisiteIsDead)});
}

std::int64_t redrive(const Selection& which, int retries) {
  Left left;
  std::int64_t sent = redrive(which, retries, left);
  // What they wait for may have been sent in a later step.
  for (std::int64_t more = sent; more > 0 && !left.empty(); sent += more) {
    Selection again;
    again.numbers = array_of(left);
    left.clear();
    more = redrive(again, retries, left);
  }
  if (!left.empty()) mark_left(left);
  return sent;
}

}  // namespace

}  // namespace mq

extern "C" Datum mq_redrive_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_redrive()");
    const int retries = mq::int_of(mq::argument(fcinfo, 2), "retries");
    mq::check::retries("retries", retries);
    const auto optional = [&](int n) { return PG_ARGISNULL(n) ? mq::Param() : mq::Param(PG_GETARG_DATUM(n)); };
    const mq::Selection which{optional(0), optional(1), optional(3), optional(4)};
    const mq::OwnerScope scope;
    return Int64GetDatum(mq::redrive(which, retries));
  });
}
