// The job runner of a client of the original schema: it keeps between min_concurrency and max_concurrency jobs
// running, listens while it waits for more, and keeps the leases of those that run.
//
// Threads: one polls and listens, one keeps jobs alive, one for each job that may run at a time; each has
// sessions of its own. What they share is guarded by mutex_.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "statements.hpp"

namespace client {

using Clock = std::chrono::steady_clock;

class Runner;

// A job while it is running. One that is neither completed nor deleted comes again when its lease is over.
class CurrentJob {
 public:
  CurrentJob(Runner& runner, Session& session, Polled message, Clock::time_point asked_at, std::uint64_t serial);

  const Id id;
  const std::string name;
  const std::optional<std::string> json, bytes;
  const Micros retry_backoff;
  const Clock::time_point asked_at;  // before the poll that gave it
  const Clock::time_point started_at;
  Session& session;  // for what the job does

  // Removes the job: in the transaction that is open in the session, or in one of its own.
  void complete();
  void checkpoint(const Checkpoint& checkpoint);
  int kept_alive() const;  // how often its lease was renewed

 private:
  Runner& runner_;
  const std::uint64_t serial_;
};

struct RunnerOptions {
  std::string conninfo;
  std::optional<Names> channel_names = std::nullopt;  // not given: all
  int min_concurrency = 16;
  int max_concurrency = 32;
  bool keep_alive = true;
  std::function<void(CurrentJob&)> job = nullptr;
};

class Runner {
 public:
  // Listens when it returns.
  explicit Runner(RunnerOptions options);
  // Waits for the jobs that are running; those that have not begun are left to their leases.
  ~Runner();
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  int polls() const;
  bool resting() const;  // its last poll has found nothing
  int most_running() const;
  std::vector<std::string> errors() const;    // of its own statements
  std::vector<std::string> failures() const;  // of jobs

 private:
  friend class CurrentJob;

  struct Waiting {
    Polled message;
    Clock::time_point asked_at;
    std::uint64_t serial;
  };
  struct Lease {
    Id id;
    Micros length;
    Clock::time_point renew_at;
    int renewed = 0;
  };

  void poll_jobs();
  Micros poll_and_dispatch(Session& session, int batch_size);
  void wait_for_notification(Micros longest);
  void notify() const;
  void run_jobs();
  void keep_jobs_alive();
  void stop_keeping_alive(std::uint64_t serial);
  int kept_alive(std::uint64_t serial) const;

  const RunnerOptions options_;
  Session listener_;
  const int wakeup_;  // an eventfd

  mutable std::mutex mutex_;
  std::condition_variable work_changed_, leases_changed_;
  bool stopping_ = false;
  int running_ = 0;
  int most_running_ = 0;
  int polls_ = 0;
  bool resting_ = false;
  std::uint64_t serial_ = 0;
  std::deque<Waiting> waiting_;
  std::map<std::uint64_t, Lease> leases_;
  std::vector<std::string> errors_, failures_;

  std::vector<std::jthread> threads_;
};

// Jobs by their names. One that nobody has registered fails.
class Registry {
 public:
  void add(const std::string& name, std::function<void(CurrentJob&)> job) { jobs_[name] = std::move(job); }
  void operator()(CurrentJob& job) const;

 private:
  std::map<std::string, std::function<void(CurrentJob&)>> jobs_;
};

}  // namespace client
