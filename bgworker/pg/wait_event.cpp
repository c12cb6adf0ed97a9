#include "pg/wait_event.hpp"

#include <cstring>
#include <iterator>

#include "pg/versions.hpp"

namespace mq {

namespace {

// In the order of WaitFor.
constexpr const char* kNames[] = {"MqLauncher", "MqIdle",    "MqWaitDue", "MqLeasedCalls",
                                  "MqPause",    "MqReceive", "MqWait",    "MqWorkersLeave"};

// The server has room for 128 names of all extensions together, and raises an error beyond that, at which no wait may
// end. Where little is left, mq does without names.
constexpr int kMostNames = 100;

bool has_room(const char* name) {
  int count = 0;
  char** const names = server::wait_event_names(&count);
  bool room = count < kMostNames;
  for (int i = 0; i < count && !room; ++i) room = strcmp(names[i], name) == 0;
  pfree(names);
  return room;
}

}  // namespace

std::uint32_t wait_event(WaitFor what) {
  static std::uint32_t events[std::size(kNames)];
  const auto n = static_cast<std::size_t>(what);
  if (events[n] == 0) {
    const bool named = server::kNamesWaitEvents && has_room(kNames[n]);
    events[n] = named ? server::new_wait_event(kNames[n]) : PG_WAIT_EXTENSION;
  }
  return events[n];
}

}  // namespace mq
