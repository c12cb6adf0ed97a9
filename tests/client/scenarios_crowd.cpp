// Many jobs, many clients at once.

#include <algorithm>
#include <atomic>
#include <list>
#include <thread>

#include "test.hpp"

namespace client {

namespace {

struct Crowd {
  int jobs;
  int senders;
  int runners;
  int concurrency;       // of each runner
  bool at_once = false;  // jobs are sent while others run
  int inside = 0;        // messages of the channel 'inside', which no runner polls
};

constexpr int kChannels = 2;
constexpr int kArgs = 32;

// Every second job of a channel is.
bool is_ordered(int job) {
  return job / (kChannels * kArgs) % 2 == 0;
}

// Under the lock of its channel an ordered one is entered in client_sent: in the order
// of the commits.
void send_jobs(Session& session, int first, int step, int end, Id* ids, const std::atomic<bool>& stop) {
  for (int i = first; i < end && !stop; i += step) {
    const Job job{.retry_backoff = std::chrono::hours(1),
                  .channel_name = i % kChannels == 0 ? "left" : "right",
                  .channel_args = std::to_string(i / kChannels % kArgs),
                  .ordered = is_ordered(i)};
    ids[i] = job.id;
    if (!job.ordered) {
      insert(session, job);
      continue;
    }
    session.execute("BEGIN");
    insert(session, job);
    session.run("INSERT INTO client_sent (job, channel) VALUES ($1, $2)",
                {uuid(job.id), text(job.channel_name + " " + job.channel_args)});
    session.execute("COMMIT");
  }
}

// For handlers inside the server, if there are any: the same statement, other channels.
void send_inside(Session& session, int count, const std::atomic<bool>& stop) {
  for (int i = 0; i < count && !stop; ++i)
    insert(session, {.channel_name = "inside",
                     .channel_args = std::to_string(i % 8),
                     .ordered = i % 2 == 0,
                     .json = std::to_string(i)});
}

void each_once(Test& t, const Crowd& crowd) {
  t.make_tables();
  std::atomic<int> runs = 0, senders_left = 0;
  std::atomic<bool> stop = false;
  Journal errors;
  Ids ids(static_cast<std::size_t>(crowd.jobs));

  std::list<Runner> runners;
  std::vector<std::jthread> senders;
  const auto start_runners = [&] {
    for (int i = 0; i < crowd.runners; ++i)
      runners.emplace_back(RunnerOptions{.conninfo = t.conninfo(),
                                         .channel_names = Names{"left", "right"},
                                         .min_concurrency = (crowd.concurrency + 1) / 2,
                                         .max_concurrency = crowd.concurrency,
                                         .job = [&](CurrentJob& job) {
                                           job.session.execute("BEGIN");
                                           job.session.run("INSERT INTO client_ledger (job) VALUES ($1)",
                                                           {uuid(job.id)});
                                           job.complete();
                                           job.session.execute("COMMIT");
                                           ++runs;
                                         }});
  };
  const auto sender = [&](const std::function<void(Session&)>& send) {
    ++senders_left;
    senders.emplace_back([&, send] {
      try {
        Session session(t.conninfo());
        send(session);
      } catch (const std::exception& e) {
        errors.add(e.what());
      }
      --senders_left;
    });
  };
  const auto trouble = [&] {
    Names all = errors.entries();
    for (const Runner& runner : runners)
      for (const Names& some : {runner.errors(), runner.failures()}) all.insert(all.end(), some.begin(), some.end());
    if (runs > crowd.jobs) all.push_back(std::to_string(runs) + " runs of " + std::to_string(crowd.jobs) + " jobs");
    return all;
  };
  // Slow is not stuck: the limit is that of each step.
  const auto wait_for = [&](const std::function<bool()>& done) {
    for (int before = -1; before != runs && !done() && trouble().empty();) {
      before = runs;
      wait_until(t.limit(), [&] { return runs != before || done() || !trouble().empty(); });
    }
    stop = !done();
  };

  if (crowd.at_once) start_runners();
  for (int i = 0; i < crowd.senders; ++i)
    sender([&, i](Session& session) { send_jobs(session, i, crowd.senders, crowd.jobs, ids.data(), stop); });
  if (crowd.inside > 0) sender([&](Session& session) { send_inside(session, crowd.inside, stop); });
  if (!crowd.at_once) {
    senders.clear();
    start_runners();
  }
  wait_for([&] { return runs >= crowd.jobs && senders_left == 0; });
  senders.clear();
  const Names wrong = trouble();
  t.require(wrong.empty(), "no client fails", wrong.empty() ? "" : wrong.front());
  t.equal(runs, crowd.jobs, "as many runs as jobs");
  runners.clear();

  const Result rows = t.owner().run("SELECT job FROM client_ledger");
  Ids done;
  for (int row = 0; row < rows.rows(); ++row) done.push_back(read_uuid(rows.bytes(row, 0)));
  std::sort(done.begin(), done.end());
  std::sort(ids.begin(), ids.end());
  t.check(done == ids, "each job has run exactly once", std::to_string(done.size()) + " runs are in the ledger");
  t.equal(t.number("SELECT count(*) FROM mq_msgs WHERE channel_name IN ('left', 'right')"), 0, "nothing is left");
  int ordered = 0;
  for (int i = 0; i < crowd.jobs; ++i) ordered += is_ordered(i);
  t.equal(t.number("SELECT count(*) FROM client_sent"), ordered, "the ordered ones are half of them");
  t.equal(t.number("SELECT count(*) FROM (SELECT"
                   "   row_number() OVER (PARTITION BY s.channel ORDER BY s.n) AS sent,"
                   "   row_number() OVER (PARTITION BY s.channel ORDER BY l.n) AS run"
                   "   FROM client_sent s JOIN client_ledger l USING (job)) o WHERE sent <> run"),
          0, "and have run in the order of their commits");
}

}  // namespace

std::vector<Scenario> crowd_scenarios() {
  return {
      {"one_runner", "2,048 jobs over 64 channels, 50 at a time",
       [](Test& t) { each_once(t, {.jobs = 2048, .senders = 1, .runners = 1, .concurrency = 50}); }},
      {"ten_thousand", "10,000 jobs over 64 channels, sent and run at once by 50 clients",
       [](Test& t) {
         each_once(t, {.jobs = 10000, .senders = 4, .runners = 5, .concurrency = 10, .at_once = true, .inside = 1000});
       }},
  };
}

}  // namespace client
