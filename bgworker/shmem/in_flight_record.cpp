#include "shmem/in_flight_record.hpp"

#include <cstring>
#include <type_traits>

namespace mq::in_flight {

static_assert(std::is_trivially_copyable_v<Record>);

std::vector<Unfinished> unfinished_calls(std::string_view file, bool same_postmaster) {
  std::vector<Unfinished> calls;
  for (; file.size() >= sizeof(Record); file.remove_prefix(sizeof(Record))) {
    Record record;
    std::memcpy(&record, file.data(), sizeof record);
    if (record.database == InvalidOid || record.messages <= 0) continue;
    if (record.end > kSignal && record.end <= kSignal + kMostSignal)
      calls.push_back({record, AbortReason::kCrash});
    else if (record.end == kRunning && same_postmaster)
      calls.push_back({record, AbortReason::kKilled});
  }
  return calls;
}

}  // namespace mq::in_flight
