#include "test.hpp"

#include <cstdio>
#include <thread>

namespace client {

bool Test::check(bool good, const std::string& what, const std::string& otherwise) {
  ++checks_;
  if (!good) ++failed_;
  std::printf("    %s %d - %s\n", good ? "ok" : "not ok", checks_, what.c_str());
  if (!good && !otherwise.empty()) std::printf("    # %s\n", otherwise.c_str());
  std::fflush(stdout);
  return good;
}

void Test::require(bool good, const std::string& what, const std::string& otherwise) {
  if (!check(good, what, otherwise)) throw Stop();
}

void Test::equal(const std::string& got, const std::string& expected, const std::string& what) {
  check(got == expected, what, "got '" + got + "', expected '" + expected + "'");
}

void Test::equal(std::int64_t got, std::int64_t expected, const std::string& what) {
  equal(std::to_string(got), std::to_string(expected), what);
}

void Test::within_limit(const std::function<bool()>& holds, const std::string& what) {
  require(wait_until(limit(), holds), what, "not within " + std::to_string(limit().count()) + " s");
}

void Test::works(const Runner& runner) {
  const std::vector<std::string> errors = runner.errors();
  check(errors.empty(), "no statement of the runner fails", errors.empty() ? "" : errors.front());
}

std::int64_t Test::number(const std::string& query) {
  return read_int8(owner_.run(query).bytes(0, 0));
}

void Test::make_tables() {
  owner_.execute(
      "DROP TABLE IF EXISTS client_ledger, client_sent;"
      "CREATE TABLE client_ledger (n bigserial, job uuid);"
      "CREATE TABLE client_sent (n bigserial, job uuid, channel text);"
      "GRANT INSERT ON client_ledger, client_sent TO PUBLIC;"
      "GRANT USAGE ON SEQUENCE client_ledger_n_seq, client_sent_n_seq TO PUBLIC");
}

bool wait_until(std::chrono::seconds limit, const std::function<bool()>& holds) {
  constexpr std::chrono::milliseconds kBetween{2};
  const Clock::time_point end = Clock::now() + limit;
  while (!holds()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(kBetween);
  }
  return true;
}

}  // namespace client
