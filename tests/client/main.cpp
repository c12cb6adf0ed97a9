// mq_client: lives the life of a client of the original schema, and says as TAP whether all went well.
//
//   mq_client [--owner CONNINFO] [--limit SECONDS] [--delete] CONNINFO [SCENARIO...]
//   mq_client --list
//
// But for the scenarios of mq_receive it knows nothing but the original's statements, so it runs against the original
// schema as well. The owner
// of the schema cleans up before each scenario (--delete: without TRUNCATE); the clients are whoever the last CONNINFO
// says.

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string>
#include <vector>

#include "test.hpp"

namespace client {
namespace {

std::vector<Scenario> all_scenarios() {
  std::vector<Scenario> all;
  for (std::vector<Scenario> some :
       {statement_scenarios(), sending_scenarios(), job_scenarios(), crowd_scenarios(), receiving_scenarios()})
    std::move(some.begin(), some.end(), std::back_inserter(all));
  return all;
}

bool run(const Scenario& scenario, const Options& options, int number) {
  std::printf("# Subtest: %s\n", scenario.name.c_str());
  std::fflush(stdout);
  bool good = false;
  try {
    Test test(options);
    try {
      test.clean_up();
      scenario.run(test);
    } catch (const std::exception& e) {
      test.check(false, "nothing fails", e.what());
    } catch (const Stop&) {
    }
    std::printf("    1..%d\n", test.checks());
    good = test.good();
  } catch (const std::exception& e) {
    std::printf("    # %s\n", e.what());
  }
  std::printf("%s %d - %s: %s\n", good ? "ok" : "not ok", number, scenario.name.c_str(), scenario.what.c_str());
  std::fflush(stdout);
  return good;
}

int usage() {
  std::fprintf(stderr, "usage: mq_client [--owner CONNINFO] [--limit SECONDS] [--delete] CONNINFO [SCENARIO...]\n");
  return 2;
}

int main(const std::vector<std::string>& arguments) {
  Options options;
  std::vector<std::string> rest;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const bool more = i + 1 < arguments.size();
    if (arguments[i] == "--list") {
      for (const Scenario& scenario : all_scenarios()) std::printf("%s\n", scenario.name.c_str());
      return 0;
    }
    if (arguments[i] == "--owner" && more)
      options.owner = arguments[++i];
    else if (arguments[i] == "--limit" && more)
      options.limit = std::chrono::seconds(std::stoi(arguments[++i]));
    else if (arguments[i] == "--delete")
      options.truncates = false;
    else
      rest.push_back(arguments[i]);
  }
  if (rest.empty() || rest.front().starts_with("--")) return usage();
  options.client = rest.front();
  if (options.owner.empty()) options.owner = options.client;

  std::vector<Scenario> chosen;
  for (const Scenario& scenario : all_scenarios())
    if (rest.size() == 1 || std::find(rest.begin() + 1, rest.end(), scenario.name) != rest.end())
      chosen.push_back(scenario);
  if (rest.size() > 1 && chosen.size() != rest.size() - 1) {
    std::fprintf(stderr, "a scenario has an unknown name; see mq_client --list\n");
    return 2;
  }
  std::printf("1..%zu\n", chosen.size());
  int number = 0;
  int failed = 0;
  for (const Scenario& scenario : chosen)
    if (!run(scenario, options, ++number)) ++failed;
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace client

int main(int count, char** values) {
  try {
    return client::main({values + 1, values + count});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 2;
  }
}
