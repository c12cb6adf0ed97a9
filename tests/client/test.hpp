// What the scenarios share: who they are, checks that are reported as TAP, and waiting with a limit.
#pragma once

#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "runner.hpp"
#include "statements.hpp"

namespace client {

struct Options {
  std::string client;              // conninfo of clients
  std::string owner;               // conninfo of who cleans up and looks at the tables
  std::chrono::seconds limit{30};  // of each wait
  bool truncates = true;           // the owner cleans up with TRUNCATE; else with DELETE
};

// Thrown by a check whose failure leaves no sense in going on.
struct Stop {};

class Test {
 public:
  explicit Test(const Options& options) : options_(options), owner_(options.owner), client_(options.client) {}

  Session& owner() { return owner_; }
  // Removes everything, by hand.
  void clean_up() { client::clean_up(owner_, options_.truncates); }
  // The session of the scenario itself; others may be opened.
  Session& client() { return client_; }
  const std::string& conninfo() const { return options_.client; }
  // The limit is below a runner's longest wait: what comes within it was notified, or was due.
  std::chrono::seconds limit() const { return options_.limit; }

  bool check(bool good, const std::string& what, const std::string& otherwise = "");
  void require(bool good, const std::string& what, const std::string& otherwise = "");
  void equal(const std::string& got, const std::string& expected, const std::string& what);
  void equal(std::int64_t got, std::int64_t expected, const std::string& what);
  // Waits until it holds; for how long it may take see limit().
  void within_limit(const std::function<bool()>& holds, const std::string& what);
  // No statement of the runner's own has failed.
  void works(const Runner& runner);
  // A number that the owner's query gives.
  std::int64_t number(const std::string& query);
  // New tables for what jobs write: client_ledger (n bigserial, job uuid), client_sent (n bigserial, job uuid, channel
  // text).
  void make_tables();

  bool good() const { return failed_ == 0; }
  int checks() const { return checks_; }

 private:
  const Options& options_;
  Session owner_, client_;
  int checks_ = 0;
  int failed_ = 0;
};

// True once it holds; false when the limit has passed.
bool wait_until(std::chrono::seconds limit, const std::function<bool()>& holds);

// What happened, in that order; any thread may write.
class Journal {
 public:
  void add(const std::string& entry) {
    const std::lock_guard lock(mutex_);
    entries_.push_back(entry);
  }
  std::vector<std::string> entries() const {
    const std::lock_guard lock(mutex_);
    return entries_;
  }
  std::string text() const {
    std::string all;
    for (const std::string& entry : entries()) all += (all.empty() ? "" : " ") + entry;
    return all;
  }
  std::size_t size() const { return entries().size(); }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> entries_;
};

struct Scenario {
  std::string name;
  std::string what;
  std::function<void(Test&)> run;
};

std::vector<Scenario> statement_scenarios();
std::vector<Scenario> sending_scenarios();
std::vector<Scenario> job_scenarios();
std::vector<Scenario> crowd_scenarios();
std::vector<Scenario> receiving_scenarios();  // not on the original

}  // namespace client
