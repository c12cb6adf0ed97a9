// What senders do: transactions, two phases, ordered messages.

#include <future>

#include "test.hpp"

namespace client {

namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

// Names as they are delivered one by one, each deleted before the next poll.
std::string drained(Session& session, const std::string& channel) {
  std::string names;
  for (;;) {
    const std::vector<Polled> rows = poll(session, Names{channel}, 1);
    if (rows.empty() || !rows[0].id) return names;
    names += (names.empty() ? "" : " ") + rows[0].name.value_or("NULL");
    remove(session, *rows[0].id);
  }
}

bool waits_for_a_lock(Test& t, const Session& session) {
  return t.number("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = " +
                  std::to_string(session.pid())) > 0;
}

void order(Test& t) {
  for (const char* name : {"a", "b", "c", "d"})
    insert(t.client(), {.channel_name = "c", .ordered = true, .name = name});
  insert(t.client(), {.channel_name = "c", .channel_args = "other", .ordered = true, .name = "x"});
  const std::vector<Polled> rows = poll(t.client(), Names{"c"}, 10);
  t.equal(static_cast<std::int64_t>(rows.size()), 2, "of each channel its head alone");
  for (const Polled& row : rows) remove(t.client(), *row.id);
  t.equal(drained(t.client(), "c"), "b c d", "then one after the other");
}

void appends_in_a_transaction(Test& t) {
  std::string expected;
  t.client().execute("BEGIN");
  for (int i = 0; i < 12; ++i) {
    const std::string name = std::to_string(i);
    insert(t.client(), {.channel_name = "c", .ordered = true, .name = name});
    expected += (expected.empty() ? "" : " ") + name;
  }
  t.client().execute("COMMIT");
  t.equal(drained(t.client(), "c"), expected, "they keep their order");
}

void appends_at_once(Test& t) {
  Session other(t.conninfo());
  t.client().execute("BEGIN");
  insert(t.client(), {.channel_name = "c", .ordered = true, .name = "first"});
  std::future<Id> second = std::async(
      std::launch::async, [&] { return insert(other, {.channel_name = "c", .ordered = true, .name = "second"}); });
  t.within_limit(
      [&] { return second.wait_for(milliseconds(0)) == std::future_status::ready || waits_for_a_lock(t, other); },
      "the second sends or waits");
  t.client().execute("COMMIT");
  second.get();
  t.equal(drained(t.client(), "c"), "first second", "both arrive, in the order of their commits");
}

void two_phases(Test& t) {
  const Id id = insert(t.client(), {.channel_name = "c", .commit_interval = hours(1), .name = "a"});
  t.check(exists(t.client(), id), "it exists");
  t.equal(drained(t.client(), "c"), "", "and is hidden");
  t.client().execute("BEGIN");
  commit(t.client(), {id});
  t.client().execute("ROLLBACK");
  t.equal(drained(t.client(), "c"), "", "a commit that is rolled back is none");
  commit(t.client(), {id, new_id()});
  t.equal(drained(t.client(), "c"), "a", "committed it is delivered");
  commit(t.client(), {id});
  t.equal(drained(t.client(), "c"), "", "once");
  const Id late = insert(t.client(), {.delay = seconds(50), .channel_name = "c", .commit_interval = hours(1)});
  commit(t.client(), {late});
  const std::vector<Polled> rows = poll(t.client(), Names{"c"}, 1);
  t.check(rows[0].wait_time && *rows[0].wait_time > Micros(0) && *rows[0].wait_time <= seconds(50),
          "one with a delay is due when the delay is over");
}

void two_phases_kept_alive(Test& t) {
  constexpr Micros kInterval = milliseconds(1000);
  const Id id = insert(t.client(), {.channel_name = "c", .commit_interval = kInterval, .name = "a"});
  keep_alive(t.client(), id, hours(1));
  const Clock::time_point end = Clock::now() + kInterval;
  t.within_limit([&] { return Clock::now() > end; }, "the interval passes");
  t.equal(drained(t.client(), "c"), "", "it is still hidden");
  t.check(exists(t.client(), id), "and still there");
  commit(t.client(), {id});
  t.equal(drained(t.client(), "c"), "a", "committed it is due at once");
}

void expiry(Test& t) {
  Journal journal;
  const Id id = insert(t.client(), {.channel_name = "c", .commit_interval = milliseconds(200), .name = "expired"});
  const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{"c"}, .job = [&](CurrentJob& job) {
                         journal.add(job.name);
                         job.complete();
                       }});
  t.within_limit([&] { return !exists(t.client(), id); }, "when its interval has passed the runner removes it");
  commit(t.client(), {id});
  insert(t.client(), {.channel_name = "c", .name = "next"});
  t.within_limit([&] { return journal.size() > 0; }, "what is sent next is delivered");
  t.equal(journal.text(), "next", "alone");
  t.works(runner);
}

void dead(Test& t) {
  const Id id =
      insert(t.client(), {.retries = 0, .retry_backoff = milliseconds(50), .channel_name = "c", .ordered = true});
  insert(t.client(), {.channel_name = "c", .ordered = true, .name = "next"});
  t.check(poll(t.client(), Names{"c"}, 1)[0].id == id, "the only attempt");
  std::string next;
  t.within_limit([&] { return !(next = drained(t.client(), "c")).empty(); }, "its channel goes on");
  t.equal(next, "next", "with the next");
  t.check(!exists(t.client(), id), "it exists no more");
}

}  // namespace

std::vector<Scenario> sending_scenarios() {
  return {
      {"order", "ordered messages come one after the other", order},
      {"appends_in_a_transaction", "a transaction sends several ordered messages", appends_in_a_transaction},
      {"appends_at_once", "two transactions append to a channel", appends_at_once},
      {"two_phases", "a message is hidden until it is committed", two_phases},
      {"two_phases_kept_alive", "an uncommitted message is kept alive", two_phases_kept_alive},
      {"expiry", "an uncommitted message expires", expiry},
      {"dead", "a message without attempts left is out of the way", dead},
  };
}

}  // namespace client
