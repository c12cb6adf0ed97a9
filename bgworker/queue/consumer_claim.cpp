#include "queue/consumer_claim.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "pg/extension.hpp"
#include "pg/locks.hpp"
#include "pg/row_locks.hpp"
#include "queue/enabled.hpp"
#include "queue/find.hpp"
#include "queue/maintenance.hpp"
#include "queue/prerequisites.hpp"
#include "queue/rates.hpp"
#include "queue/running.hpp"
#include "queue/settle.hpp"
#include "queue/undeliverable.hpp"

namespace mq {

namespace {

constexpr std::size_t kMostPutOff = 1000;  // messages that a claim puts off, before it lets the caller commit
constexpr std::size_t kSwept = 50;         // rows of mq_prerequisites that a claim that finds nothing looks at
// Ordered channels whose heads it looks at: the least, the most, and for how long.
constexpr int kLeastRepaired = 4;
constexpr int kMostRepaired = 50;
constexpr Micros kRepairTime = 100;

bool is_ordered(const Claimed& message) {
  return message.ordered;
}

}  // namespace

Claim ConsumerClaim::run(const std::function<std::vector<Source>(Claimer&)>& sources, int limit, bool thorough) {
  // What is claimed is written. Who had read an index by then, and asked for this lock later, would deadlock with
  // a REINDEX of the table, which has the table and waits for the index. (A worker asks for it when it settles: its
  // handlers may run long, and would hold up whoever wants to make a trigger.)
  locks::lock_to_write(Extension::msgs());
  bool left_alone = !enabled::here();
  // Set when a claim found only rows that other sessions hold: the next claim passes over those.
  std::optional<row_locks::Removal> avoiding;
  std::size_t put_off = 0;
  for (bool repaired = left_alone;;) {
    if (left_alone) claimer_.leave_undeliverable();
    const std::vector<Source> from = sources(claimer_);
    Claim claim = claimer_.claim(from, limit, false);
    // A restore may have committed since: then the claim has seen its rows.
    if (!claim.undeliverable.empty() && !enabled::still_here()) {
      left_alone = repaired = true;
      claim.undeliverable.clear();
      if (claim.messages.empty()) continue;
    }
    if (leave_held(claim.undeliverable) && claim.messages.empty() && claim.undeliverable.empty() && !avoiding) {
      avoiding.emplace(true);
      continue;
    }
    const bool settles = !claim.undeliverable.empty() &&
                         (thorough || std::any_of(claim.undeliverable.begin(), claim.undeliverable.end(), is_ordered));
    if (settles) {
      Settlement settlement;
      settle_undeliverable(claim.undeliverable, clock_.now(), settlement);
      settle(settlement);
    }
    const bool more_may_be_behind = claim.put_off > 0;
    claim.put_off = put_off += claim.put_off;
    running::take(claim.messages);
    const std::map<std::uint64_t, int> taken = running::count(claim.messages);
    rates::take(claim.messages);
    running::give_back(taken, claim.messages);
    if (!claim.messages.empty() || put_off >= kMostPutOff) return claim;
    if (more_may_be_behind) continue;
    // The undeliverable messages are settled: claim again, as others may be behind them.
    if (settles) continue;
    claim = Claim();
    claim.put_off = put_off;
    if (repaired) return claim;
    std::vector<std::string> names;
    for (const Source& source : from) names.emplace_back(source.channel_name);
    const bool overlooked = claimer_.overlooked();
    const bool followed = follow_clock(names, clock_.now());
    const bool swept = prerequisites::sweep(kSwept);
    if (!repair_heads(Effort(clock_, kRepairTime, kLeastRepaired, kMostRepaired)) && !overlooked && !followed && !swept)
      return claim;
    repaired = true;
  }
}

}  // namespace mq
