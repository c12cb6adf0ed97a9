// The calls that the original schema does not have: mq_receive, mq_ack, mq_nack, mq_extend; by themselves, and beside
// runners that poll.

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>

#include "test.hpp"

namespace client {

namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

void shapes(Test& t) {
  for (const Statement& statement : receiving_statements()) {
    const Session::Shape shape = t.client().shape(statement.sql, statement.types);
    t.check(shape.params == statement.types, std::string(statement.sql) + " takes what is bound");
  }
  t.check(t.client().shape(receiving_statements().front().sql, receiving_statements().front().types).columns ==
              delivery_columns(),
          "mq_receive returns rows of its columns");
}

void one_by_one(Test& t) {
  const Id id = insert(t.client(), {.retry_backoff = hours(1), .channel_name = "r", .name = "first", .json = "[1]"});
  std::vector<Received> got = receive(t.client(), Names{"r"}, 10, minutes(1), Micros(0));
  t.require(got.size() == 1 && got[0].id == id, "a message is received");
  t.equal(got[0].name, "first", "with its name");
  t.equal(got[0].attempt, 1, "at its first attempt");
  t.equal(static_cast<std::int64_t>(receive(t.client(), Names{"r"}, 10, minutes(1), Micros(0)).size()), 0, "by one");
  t.equal(static_cast<std::int64_t>(poll(t.client(), Names{"r"}, 10).front().id.has_value()), 0, "also beside a poll");
  t.check(extend(t.client(), {id}, got[0].lease, minutes(2)) == Ids{id}, "its lease is extended");
  t.check(ack(t.client(), {id}, got[0].lease - 1).empty(), "another token acknowledges nothing");
  t.check(nack(t.client(), {id}, got[0].lease, "no", Micros(0)) == Ids{id}, "it fails");
  t.check(ack(t.client(), {id}, got[0].lease).empty(), "and is ours no more");
  const std::vector<Received> again = receive(t.client(), std::nullopt, 10, minutes(1), seconds(20));
  t.require(again.size() == 1 && again[0].attempt == 2, "it is received again");
  t.check(ack(t.client(), {new_id(), id}, again[0].lease) == Ids{id}, "and acknowledged");
  t.check(!exists(t.client(), id), "it is gone");
  // A lease that runs out is worth nothing, and the message is there again.
  const Id late = insert(t.client(), {.retry_backoff = hours(1), .channel_name = "r"});
  const std::vector<Received> lost = receive(t.client(), Names{"r"}, 1, milliseconds(100), Micros(0));
  const std::vector<Received> found = receive(t.client(), Names{"r"}, 1, minutes(1), seconds(20));
  t.require(lost.size() == 1 && found.size() == 1 && found[0].id == late, "a wait ends with the lease of another");
  t.check(ack(t.client(), {late}, lost[0].lease).empty(), "whose token is worth nothing");
  t.check(ack(t.client(), {late}, found[0].lease) == Ids{late}, "but the newer one is");
}

// Receivers that wait, and runners that poll, share the jobs of one channel.
void beside_runners(Test& t) {
  constexpr int kJobs = 1000;
  constexpr int kReceivers = 8;
  std::atomic<int> polled = 0, received = 0;
  std::atomic<bool> stop = false;
  Journal errors;
  {
    std::vector<std::jthread> receivers;
    for (int i = 0; i < kReceivers; ++i)
      receivers.emplace_back([&] {
        try {
          Session session(t.conninfo());
          while (!stop)
            for (const Received& message : receive(session, Names{"shared"}, 5, hours(1), seconds(1))) {
              if (message.attempt == 1 && message.json == "7") {
                nack(session, {message.id}, message.lease, "not at once", Micros(0));
                continue;
              }
              received += static_cast<int>(ack(session, {message.id}, message.lease).size());
            }
        } catch (const std::exception& e) {
          errors.add(e.what());
        }
      });
    const Runner runner(
        {.conninfo = t.conninfo(), .channel_names = Names{"shared"}, .min_concurrency = 4, .max_concurrency = 8, .job = [&](CurrentJob& job) {
           job.complete();
           ++polled;
         }});
    for (int i = 0; i < kJobs; ++i)
      insert(t.client(), {.retry_backoff = hours(1),
                          .channel_name = "shared",
                          .channel_args = std::to_string(i % 20),
                          .ordered = i % 2 == 0,
                          .json = std::to_string(i % 10)});
    t.within_limit([&] { return polled + received >= kJobs; }, "all jobs are done");
    stop = true;
    t.works(runner);
  }
  t.equal(errors.text(), "", "no receiver fails");
  t.equal(polled + received, kJobs, "each once");
  t.check(received > 0, "receivers have had some of them");
  t.equal(t.number("SELECT count(*) FROM mq_msgs"), 0, "nothing is left");
}

}  // namespace

std::vector<Scenario> receiving_scenarios() {
  return {
      {"receiving_statements", "parameters and columns of the calls that are new", shapes},
      {"receive", "a message is received, extended, failed and acknowledged by its token", one_by_one},
      {"receive_beside_runners", "sessions that wait and runners that poll share a channel", beside_runners},
  };
}

}  // namespace client
