// The statements one by one, without a runner.

#include <algorithm>
#include <numeric>

#include "test.hpp"

namespace client {

namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

std::string join(const Names& words) {
  return std::accumulate(words.begin(), words.end(), std::string(), [](std::string all, const std::string& word) {
    return all + (all.empty() ? "" : ", ") + word;
  });
}

std::string join(const std::vector<Type>& types) {
  Names names;
  for (const Type type : types) names.push_back(name_of(type));
  return join(names);
}

// Names of the messages that a poll of the channel gives.
std::string polled(Session& session, const Names& channels, int batch_size = 10) {
  Names names;
  for (const Polled& message : poll(session, channels, batch_size))
    if (message.id) names.push_back(message.name.value_or("NULL"));
  return join(names);
}

void check_types(Test& t, const std::vector<Statement>& statements) {
  for (const Statement& statement : statements)
    t.equal(join(t.client().shape(statement.sql, statement.types).params), join(statement.types),
            std::string(statement.sql));
}

void types(Test& t) {
  check_types(t, statements());
  t.equal(join(t.client().shape("SELECT * FROM mq_poll($1, $2)", {kTextArray, kInt4}).columns), join(poll_columns()),
          "the columns of mq_poll");
}

void values(Test& t) {
  std::string all_bytes(256, '\0');
  std::iota(all_bytes.begin(), all_bytes.end(), '\0');
  std::string megabyte;
  while (megabyte.size() < (1U << 20)) megabyte += all_bytes;
  const std::vector<Job> jobs = {
      {.retry_backoff = milliseconds(1500), .name = "neither"},
      {.name = "json", .json = R"({"b":[1,2.50,null],"a":"ä\n\u20ac\"'\\"})"},
      {.name = "null", .json = "null"},
      {.name = "empty", .bytes = ""},
      {.name = "bytes", .bytes = all_bytes},
      {.name = R"(both 'n"ä\me')", .json = "1", .bytes = megabyte},
  };
  const Names json = {"NULL", R"({"a": "ä\n€\"'\\", "b": [1, 2.50, null]})", "null", "NULL", "NULL", "1"};
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    insert(t.client(), jobs[i]);
    const std::vector<Polled> rows = poll(t.client(), Names{""}, 10);
    t.require(rows.size() == 1 && rows[0].id == jobs[i].id, jobs[i].name + ": it comes alone, with its id");
    const Polled& row = rows[0];
    t.check(row.is_committed == true, "is_committed");
    t.equal(row.name.value_or("NULL"), jobs[i].name, "name");
    t.equal(row.json.value_or("NULL"), json[i], "payload_json");
    t.check(row.bytes == jobs[i].bytes, "payload_bytes");
    t.check(row.retry_backoff == jobs[i].retry_backoff, "retry_backoff is as it was said");
    t.check(row.wait_time == Micros(0), "wait_time");
    remove(t.client(), *row.id);
  }
}

void nothing_ready(Test& t) {
  std::vector<Polled> rows = poll(t.client(), Names{"c"}, 10);
  t.check(rows.size() == 1 && !rows[0].id && !rows[0].is_committed && !rows[0].name && !rows[0].wait_time,
          "an empty queue: a row of NULLs");
  insert(t.client(), {.delay = seconds(50), .channel_name = "c"});
  insert(t.client(), {.delay = hours(2), .channel_name = "c"});
  insert(t.client(), {.delay = milliseconds(1), .channel_name = "other"});
  rows = poll(t.client(), Names{"c"}, 10);
  t.require(rows.size() == 1 && !rows[0].id && rows[0].wait_time.has_value(), "a row that says how long to wait");
  t.check(*rows[0].wait_time > Micros(0) && *rows[0].wait_time <= seconds(50), "until the first is due");
}

void batches(Test& t) {
  for (const char* name : {"a", "b", "c"}) insert(t.client(), {.channel_name = "one", .name = name});
  insert(t.client(), {.channel_name = "two", .name = "d"});
  insert(t.client(), {.channel_name = "three", .name = "e"});
  t.equal(static_cast<std::int64_t>(poll(t.client(), Names{"one"}, 2).size()), 2, "no more than the batch size");
  t.equal(polled(t.client(), {"nowhere"}), "", "nothing of other channels");
  std::vector<Polled> rows = poll(t.client(), Names{"one", "two"}, 10);
  t.equal(static_cast<std::int64_t>(rows.size()), 2, "what is left of several channels");
  rows = poll(t.client(), std::nullopt, 10);
  t.check(rows.size() == 1 && rows[0].name == "e", "what is left of all channels");
}

void existence(Test& t) {
  Ids ids;
  for (int i = 0; i < 4; ++i) ids.push_back(insert(t.client(), {.channel_name = "c"}));
  const auto existing = [&] {
    Names existing;
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (exists(t.client(), ids[i])) existing.push_back(std::to_string(i));
    return join(existing);
  };
  t.check(!exists(t.client(), new_id()), "an id that nobody has sent");
  t.equal(existing(), "0, 1, 2, 3", "what was sent");
  remove(t.client(), ids[2]);
  t.equal(existing(), "0, 1, 3", "one is deleted");
  remove(t.client(), {ids[0], ids[2], ids[3], new_id()});
  t.equal(existing(), "1", "several are deleted, also ids that are gone");
  remove(t.client(), Ids{});
  t.equal(existing(), "1", "none is deleted");
  Session other(t.conninfo());
  other.execute("BEGIN");
  const Id id = insert(other, {.channel_name = "c"});
  t.check(exists(other, id) && !exists(t.client(), id), "before its transaction commits only that sees it");
  other.execute("ROLLBACK");
  t.check(!exists(t.client(), id), "and rolled back it is not sent");
}

void clearing(Test& t) {
  check_types(t, clearing_statements());
  for (const char* channel : {"foo", "bar", "baz"})
    for (const bool ordered : {false, true, true})
      insert(t.client(), {.channel_name = channel, .ordered = ordered, .name = channel});
  poll(t.client(), Names{"foo"}, 1);
  clear(t.client(), {"foo", "baz"});
  t.equal(t.number("SELECT count(*) FROM mq_payloads"), 3, "two channels are cleared, one of them at work");
  t.equal(polled(t.client(), {"foo", "bar", "baz"}), "bar, bar", "the third is left, with its head and without");
  clear_all(t.client());
  t.equal(t.number("SELECT count(*) FROM mq_payloads"), 0, "everything is cleared");
  insert(t.client(), {.channel_name = "foo", .ordered = true, .name = "again"});
  t.equal(polled(t.client(), {"foo"}), "again", "and the channel goes on");
}

// As the original's test suite cleans up, with whatever is going on left behind.
void cleaning_up(Test& t) {
  for (int i = 0; i < 3; ++i) insert(t.client(), {.channel_name = "c", .ordered = true, .name = "old"});
  const Id id = insert(t.client(), {.channel_name = "c", .commit_interval = hours(1)});
  poll(t.client(), Names{"c"}, 1);
  t.clean_up();
  t.check(!exists(t.client(), id), "nothing is left");
  t.equal(polled(t.client(), {"c"}), "", "nor delivered");
  insert(t.client(), {.channel_name = "c", .ordered = true, .name = "new"});
  insert(t.client(), {.id = id, .channel_name = "c", .name = "the same id"});
  t.equal(polled(t.client(), {"c"}), "new, the same id", "the same channel and the same id are good for new messages");
}

void helpers(Test& t) {
  Session& session = t.client();
  const auto latest = [&] {
    return read_uuid(session.run("SELECT mq_latest_message($1, $2)", {text("c"), text("x")}).bytes(0, 0));
  };
  t.check(latest() == Id(), "mq_latest_message of an empty channel is the nil uuid");
  insert(session, {.channel_name = "c", .channel_args = "x", .ordered = true});
  const Id last = insert(session, {.channel_name = "c", .channel_args = "x", .ordered = true});
  insert(session, {.channel_name = "c", .channel_args = "x"});
  insert(session, {.delay = hours(1), .channel_name = "c", .channel_args = "y"});
  t.check(latest() == last, "else the last of its ordered messages");
  const Result active = session.run("SELECT * FROM mq_active_channels($1, $2)", {texts(Names{"c"}), int4(10)});
  t.check(active.rows() == 1 && active.bytes(0, 0) == "c" && active.bytes(0, 1) == "x",
          "mq_active_channels gives the channels with due messages");
  const auto exists = [&](const Id& id) {
    return read_bool(session.run("SELECT mq_uuid_exists($1)", {uuid(id)}).bytes(0, 0));
  };
  t.check(exists(last) && !exists(Id()), "mq_uuid_exists knows the nil uuid");
}

}  // namespace

std::vector<Scenario> statement_scenarios() {
  return {
      {"types", "the statements take and return the original types", types},
      {"values", "payloads arrive as they were sent", values},
      {"nothing_ready", "a poll that finds nothing says how long to wait", nothing_ready},
      {"batches", "a poll takes what it was asked for", batches},
      {"existence", "a message exists from its commit to its deletion", existence},
      {"clearing", "channels are cleared", clearing},
      {"cleaning_up", "tables cleaned by hand are as good as new", cleaning_up},
      {"helpers", "the helper functions mean what they meant", helpers},
  };
}

}  // namespace client
