// The life of jobs in a runner.

#include <algorithm>
#include <atomic>

#include "test.hpp"

namespace client {

namespace {

using std::chrono::hours;
using std::chrono::milliseconds;

void registry(Test& t) {
  Journal journal;
  Registry registry;
  for (const std::string name : {"greet", "part"})
    registry.add(name, [&, name](CurrentJob& job) {
      journal.add(name + ":" + job.json.value_or("NULL"));
      job.complete();
    });
  const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{"c"}, .keep_alive = false, .job = registry});
  insert(t.client(), {.retries = 1, .retry_backoff = milliseconds(100), .channel_name = "c", .name = "unknown"});
  insert(t.client(), {.channel_name = "c", .name = "greet", .json = "1"});
  t.within_limit([&] { return journal.size() == 1; }, "a job is found by its name");
  insert(t.client(), {.channel_name = "c", .name = "part", .json = "2"});
  t.within_limit([&] { return journal.size() == 2; }, "another by its own");
  t.equal(journal.text(), "greet:1 part:2", "each with its payload");
  t.within_limit([&] { return runner.failures().size() >= 2; }, "a job that nobody knows is tried again");
  const std::vector<std::string> failures = runner.failures();
  t.check(std::all_of(failures.begin(), failures.end(), [](const auto& f) { return f == "unknown job unknown"; }),
          "and nothing else fails");
  t.works(runner);
}

void defaults(Test& t) {
  std::atomic<int> runs = 0;
  const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{""}, .job = [&](CurrentJob& job) {
                         job.complete();
                         ++runs;
                       }});
  t.within_limit([&] { return runner.polls() > 0; }, "the runner waits");
  const Id id = insert(t.client(), {});
  t.within_limit([&] { return runs == 1; }, "the channel without a name");
  t.check(!exists(t.client(), id), "the job is done");
  t.works(runner);
}

// While it runs its lease does not end: no clock wakes a runner.
Job job_of(const std::string& channel) {
  return {.retry_backoff = hours(1), .channel_name = channel};
}

// One that waits is woken up, whichever of the two ways it listens.
void wake_ups(Test& t) {
  std::atomic<int> named = 0, any = 0;
  const auto counts = [](std::atomic<int>& count) {
    return [&count](CurrentJob& job) {
      job.complete();
      ++count;
    };
  };
  {
    const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{"c", "d"}, .job = counts(named)});
    t.within_limit([&] { return runner.polls() > 0; }, "a runner of two channels waits");
    insert(t.client(), job_of("c"));
    t.within_limit([&] { return named == 1; }, "it is woken up by one channel");
    insert(t.client(), job_of("d"));
    t.within_limit([&] { return named == 2; }, "and by the other");
    t.works(runner);
  }
  const Runner runner({.conninfo = t.conninfo(), .job = counts(any)});
  t.within_limit([&] { return runner.polls() > 0; }, "a runner of all channels waits");
  insert(t.client(), job_of("e"));
  t.within_limit([&] { return any == 1; }, "it is woken up");
  t.works(runner);
}

void commit_wakes(Test& t) {
  Journal journal;
  const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{"c"}, .job = [&](CurrentJob& job) {
                         job.complete();
                         journal.add(job.name);
                       }});
  const Id id = insert(t.client(), {.channel_name = "c", .commit_interval = hours(1), .name = "two-phase"});
  // It comes by the clock: when it has run nothing is on its way any more that wakes the runner,
  // nor is the end of its lease near.
  insert(t.client(), {.delay = milliseconds(300), .retry_backoff = hours(1), .channel_name = "c", .name = "other"});
  t.within_limit([&] { return journal.size() > 0 && runner.resting(); }, "the runner waits");
  t.equal(journal.text(), "other", "having run the other");
  commit(t.client(), {id});
  t.within_limit([&] { return journal.size() > 1; }, "the commit wakes it up");
  t.works(runner);
}

void delays(Test& t) {
  constexpr Micros kDelay = milliseconds(1000);
  Journal journal;
  std::atomic<bool> early = false;
  const Clock::time_point sent_at = Clock::now();
  const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{"c"}, .job = [&](CurrentJob& job) {
                         if (Clock::now() < sent_at + kDelay && job.name == "late") early = true;
                         journal.add(job.name);
                         job.complete();
                       }});
  insert(t.client(), {.delay = kDelay, .channel_name = "c", .name = "late"});
  insert(t.client(), {.channel_name = "c", .name = "soon"});
  t.within_limit([&] { return journal.size() == 2; }, "nobody but the delay wakes the runner");
  t.equal(journal.text(), "soon late", "when it is over");
  t.check(!early, "and not before");
  t.works(runner);
}

void ordered_jobs(Test& t) {
  constexpr int kJobs = 20;
  Journal journal;
  std::string expected;
  for (int i = 1; i <= kJobs; ++i) {
    const std::string n = std::to_string(i);
    insert(t.client(), {.retry_backoff = hours(1), .channel_name = "c", .ordered = true, .json = n});
    expected += (i > 1 ? " +" : "+") + n + " -" + n;
  }
  const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{"c"}, .job = [&](CurrentJob& job) {
                         journal.add("+" + job.json.value_or("NULL"));
                         job.session.execute("SELECT pg_sleep(0.001)");
                         journal.add("-" + job.json.value_or("NULL"));
                         job.complete();
                       }});
  t.within_limit([&] { return journal.size() >= 2 * kJobs; }, "all of them run");
  t.equal(journal.text(), expected, "one after the other");
  t.works(runner);
}

void parallel_jobs(Test& t) {
  std::atomic<int> running = 0, most = 0, done = 0;
  const auto job = [&](int together) {
    return [&, together](CurrentJob& job) {
      ++running;
      if (!wait_until(t.limit(), [&] { return most >= together || running >= together; }))
        throw std::runtime_error("alone");
      most = std::max<int>(most, running);
      job.complete();
      --running;
      ++done;
    };
  };
  {
    for (int i = 0; i < 8; ++i) insert(t.client(), job_of("c"));
    const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{"c"}, .job = job(8)});
    t.within_limit([&] { return done == 8 || !runner.failures().empty(); }, "eight jobs wait for one another");
    t.equal(runner.most_running(), 8, "all at the same time");
    t.works(runner);
  }
  most = done = 0;
  for (int i = 0; i < 40; ++i) insert(t.client(), job_of("c"));
  const Runner runner({.conninfo = t.conninfo(),
                       .channel_names = Names{"c"},
                       .min_concurrency = 2,
                       .max_concurrency = 4,
                       .job = job(2)});
  t.within_limit([&] { return done == 40 || !runner.failures().empty(); }, "forty jobs in a runner of two to four");
  t.check(runner.most_running() <= 4, "are never more than four at a time", std::to_string(runner.most_running()));
  t.works(runner);
}

void retries(Test& t) {
  constexpr Micros kBackoff = milliseconds(200);
  struct Attempt {
    Clock::time_point asked_at, started_at;
  };
  std::mutex mutex;
  std::vector<Attempt> attempts;
  const auto count = [&] {
    const std::lock_guard lock(mutex);
    return attempts.size();
  };
  insert(t.client(), {.retries = 2, .retry_backoff = kBackoff, .channel_name = "c"});
  {
    const Runner runner(
        {.conninfo = t.conninfo(), .channel_names = Names{"c"}, .keep_alive = false, .job = [&](const CurrentJob& job) {
           const std::lock_guard lock(mutex);
           attempts.push_back({job.asked_at, job.started_at});
         }});
    t.within_limit([&] { return count() >= 3; }, "a job that does not complete comes three times with two retries");
    t.works(runner);
  }
  for (std::size_t i = 1; i < count(); ++i)
    t.check(attempts[i].started_at - attempts[i - 1].asked_at >= kBackoff * (1 << (i - 1)),
            "retry " + std::to_string(i) + " after its backoff, doubled each time");
  Polled last;
  t.within_limit(
      [&] {
        last = poll(t.client(), Names{"c"}, 1)[0];
        return last.id || !last.wait_time;
      },
      "then nothing is due any more");
  t.check(!last.id, "and it does not come again");
}

void completion_with_writes(Test& t) {
  t.make_tables();
  std::atomic<int> runs = 0, done = 0;
  const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{"c"}, .job = [&](CurrentJob& job) {
                         const int run = ++runs;
                         job.session.execute("BEGIN");
                         job.session.run("INSERT INTO client_ledger (job) VALUES ($1)", {uuid(job.id)});
                         job.complete();
                         job.session.execute(run == 1 ? "ROLLBACK" : "COMMIT");
                         ++done;
                       }});
  const Id id = insert(t.client(), {.retry_backoff = milliseconds(1000), .channel_name = "c"});
  t.within_limit([&] { return done >= 1; }, "a job whose transaction rolls back");
  t.check(exists(t.client(), id) || done > 1, "is there still");
  t.within_limit([&] { return done >= 2; }, "and comes again");
  t.check(!exists(t.client(), id), "one whose transaction commits is gone");
  t.equal(t.number("SELECT count(*) FROM client_ledger"), 1, "with what it wrote");
  t.works(runner);
}

void leases_kept(Test& t) {
  constexpr Micros kBackoff = std::chrono::seconds(3);
  std::atomic<int> runs = 0;
  std::atomic<bool> kept = false, may_end = false;
  insert(t.client(), {.retry_backoff = kBackoff, .channel_name = "c"});
  const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{"c"}, .job = [&](CurrentJob& job) {
                         ++runs;
                         kept = wait_until(t.limit(), [&] { return job.kept_alive() > 0; });
                         wait_until(t.limit(), [&] { return may_end.load(); });
                         job.complete();
                       }});
  t.within_limit([&] { return kept.load(); }, "the runner keeps a job alive");
  const Polled row = poll(t.client(), Names{"c"}, 1)[0];
  t.check(!row.id && row.wait_time && *row.wait_time > kBackoff, "its lease is longer then");
  may_end = true;
  t.within_limit([&] { return t.number("SELECT count(*) FROM mq_payloads") == 0; }, "it completes");
  t.equal(runs, 1, "and has run once");
  t.works(runner);
}

void leases_lost(Test& t) {
  std::atomic<int> runs = 0, done = 0;
  insert(t.client(), {.retry_backoff = milliseconds(100), .channel_name = "c"});
  const Runner runner(
      {.conninfo = t.conninfo(), .channel_names = Names{"c"}, .keep_alive = false, .job = [&](CurrentJob& job) {
         ++runs;
         wait_until(t.limit(), [&] { return runs > 1; });
         job.complete();
         ++done;
       }});
  t.within_limit([&] { return runs >= 2; }, "a job that nobody keeps alive comes again while it is running");
  t.within_limit([&] { return done >= 2; }, "both complete");
  t.equal(t.number("SELECT count(*) FROM mq_payloads"), 0, "and nothing is left");
  t.works(runner);
}

void checkpoints(Test& t) {
  Journal journal;
  // The backoff is the lease as well: long enough for a busy machine.
  insert(t.client(), {.retries = 1, .retry_backoff = milliseconds(1500), .channel_name = "c", .json = "1"});
  const Runner runner({.conninfo = t.conninfo(), .channel_names = Names{"c"}, .job = [&](CurrentJob& job) {
                         journal.add(job.json.value_or("NULL") + job.bytes.value_or(""));
                         if (job.json == "1")
                           job.checkpoint({.duration = milliseconds(50), .json = "2", .extra_retries = 1});
                         else if (!job.bytes)
                           job.checkpoint({.bytes = "x"});
                         else
                           job.complete();
                       }});
  t.within_limit([&] { return journal.size() >= 3; }, "a job that reaches its checkpoints and fails comes again");
  t.equal(journal.text(), "1 2 2x", "and goes on from there");
  t.within_limit([&] { return t.number("SELECT count(*) FROM mq_payloads") == 0; }, "until it completes");
  t.works(runner);
}

void checkpoint_of_last_attempt(Test& t) {
  const Id id = insert(t.client(), {.retries = 0, .retry_backoff = milliseconds(100), .channel_name = "c"});
  t.check(poll(t.client(), Names{"c"}, 1)[0].id == id, "the only attempt");
  checkpoint(t.client(), id, {.duration = milliseconds(100), .json = "2"});
  Polled last;
  t.within_limit(
      [&] {
        last = poll(t.client(), Names{"c"}, 1)[0];
        return last.id || !last.wait_time;
      },
      "it is over");
  t.check(!last.id, "and gets no other by a checkpoint without extra retries");
}

}  // namespace

std::vector<Scenario> job_scenarios() {
  return {
      {"registry", "jobs are found by their names", registry},
      {"defaults", "a job of which nothing is said", defaults},
      {"wake_ups", "a runner that waits is woken up", wake_ups},
      {"commit_wakes", "so it is by the commit of a two-phase message", commit_wakes},
      {"delays", "a job with a delay comes when that is over", delays},
      {"ordered_jobs", "ordered jobs run one after the other", ordered_jobs},
      {"parallel_jobs", "others run at the same time", parallel_jobs},
      {"retries", "a job is tried again after its backoff", retries},
      {"completion_with_writes", "a job completes in the transaction of its writes", completion_with_writes},
      {"leases_kept", "a long job is kept alive", leases_kept},
      {"leases_lost", "without that it comes again", leases_lost},
      {"checkpoints", "a job goes on from its checkpoint", checkpoints},
      {"checkpoint_of_last_attempt", "the last attempt is the last", checkpoint_of_last_attempt},
  };
}

}  // namespace client
