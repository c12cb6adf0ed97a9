#include "claim.hpp"

#include <algorithm>
#include <iterator>
#include <unordered_set>

namespace mq {

namespace {

constexpr int kUndrawn = 4;    // claims without a draw after one that found nothing new
constexpr int kFairShare = 4;  // one message in so many of a batch is drawn fairly

// Drops from `batch` everything behind `from` that stands in it before, or is not to be had.
void drop_repeats(Batch& batch, std::size_t from) {
  std::unordered_set<Uuid, UuidHash> seen;
  for (std::size_t i = 0; i < from; ++i) seen.insert(batch[i].id);
  const auto repeated = [&](const Claimed& message) { return message.held || !seen.insert(message.id).second; };
  batch.erase(std::remove_if(batch.begin() + static_cast<std::ptrdiff_t>(from), batch.end(), repeated), batch.end());
}

bool due_before(const Claimed& a, const Claimed& b) {
  return a.attempt_at != b.attempt_at ? a.attempt_at < b.attempt_at : a.place < b.place;
}

}  // namespace

bool is_deliverable(const Claimed& message, Micros now) {
  return !message.uncommitted && !message.orphan && message.attempts_left > 0 && message.has_payload &&
         message.expires_at > now;
}

Claim Claimer::claim(const std::vector<Source>& sources, int limit, bool with_runs) {
  Claim claim;
  if (sources.empty() || limit <= 0) return claim;
  std::vector<std::string_view> names;
  names.reserve(sources.size());
  for (const Source& source : sources) names.push_back(source.channel_name);
  source_.begin(names);
  const Micros now = clock_.now();
  const auto start = static_cast<std::size_t>(clock_.dice() * static_cast<double>(sources.size()));
  std::vector<Scan> scans;
  scans.reserve(sources.size());
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const Source& source = sources[(start + i) % sources.size()];
    scans.push_back({source.channel_name, source.priority, source.most});
  }
  std::stable_sort(scans.begin(), scans.end(), [](const Scan& a, const Scan& b) { return a.priority > b.priority; });

  int room = limit;
  for (auto first = scans.begin(); first != scans.end();) {
    const auto last =
        std::find_if(first, scans.end(), [&](const Scan& scan) { return scan.priority < first->priority; });
    room -= claim_equals({first, last}, room, with_runs, now, claim);
    first = last;
  }
  claim.more_is_due =
      claim.more_is_due || std::any_of(scans.begin(), scans.end(), [](const Scan& scan) { return scan.more; });
  return claim;
}

// Each channel name in turn gets an even share of the room; then those that have more share what the others left; then
// come the runs behind ordered heads.
int Claimer::claim_equals(std::span<Scan> scans, int limit, bool with_runs, Micros now, Claim& claim) {
  int room = limit;
  for (std::size_t i = 0; i < scans.size() && room > 0; ++i) {
    const auto waiting = static_cast<int>(scans.size() - i);
    room -= take_share(scans[i], (room + waiting - 1) / waiting, now);
  }
  for (Scan& scan : scans)
    if (room > 0) room -= take_oldest(scan, room, now);
  for (Scan& scan : scans) {
    std::sort(scan.found.begin(), scan.found.end(), due_before);
    Batch heads;
    for (const Claimed& message : scan.found)
      (is_deliverable(message, now) ? heads : claim.leftovers).push_back(message);
    room -= add_with_runs(heads, with_runs ? std::min(room, scan.most) : 0, now, claim);
  }
  return limit - room;
}

int Claimer::take_oldest(Scan& scan, int limit, Micros now) {
  limit = std::min(limit, scan.most);
  int taken = 0;
  while (taken < limit && scan.more) {
    const std::size_t before = scan.found.size();
    const int wanted = limit - taken;
    source_.oldest(scan.channel_name, now, scan.behind, wanted, scan.found);
    const auto got = static_cast<int>(scan.found.size() - before);
    scan.more = got == wanted;
    if (got > 0) scan.behind = Position{scan.found.back().attempt_at, scan.found.back().place};
    drop_repeats(scan.found, before);
    taken += static_cast<int>(scan.found.size() - before);
  }
  scan.most -= taken;
  return taken;
}

int Claimer::draw(Scan& scan, int limit, Micros now) {
  const std::size_t before = scan.found.size();
  const auto key = static_cast<std::int64_t>((clock_.dice() - 0.5) * 18446744073709549568.0);
  source_.fair(scan.channel_name, now, key, std::min(limit, scan.most), scan.found);
  drop_repeats(scan.found, before);
  const auto taken = static_cast<int>(scan.found.size() - before);
  if (taken == 0) undrawn_.emplace(scan.channel_name, kUndrawn);
  scan.most -= taken;
  return taken;
}

int Claimer::take_share(Scan& scan, int share, Micros now) {
  share = std::min(share, scan.most);
  // A share of one is drawn either way by turns.
  int drawn = share > 1 ? std::max(1, share / kFairShare) : (clock_.dice() < 0.5 ? 1 : 0);
  const auto undrawn = undrawn_.find(scan.channel_name);
  if (undrawn != undrawn_.end()) {
    drawn = 0;
    if (--undrawn->second == 0) undrawn_.erase(undrawn);
  }
  int taken = take_oldest(scan, share - drawn, now);
  if (drawn > 0 && scan.more) taken += draw(scan, drawn, now);
  // The channels of the draw may be those of the oldest.
  return taken + take_oldest(scan, share - taken, now);
}

// A run goes right behind its head, and ends at a message that cannot be delivered.
int Claimer::add_with_runs(const Batch& heads, int room, Micros now, Claim& claim) {
  Batch ordered;
  std::copy_if(heads.begin(), heads.end(), std::back_inserter(ordered),
               [](const Claimed& message) { return message.ordered; });
  Batch runs;
  int length = 0;  // of a run, at most
  if (room > 0 && !ordered.empty()) {
    if (ordered.size() > static_cast<std::size_t>(room)) ordered.resize(static_cast<std::size_t>(room));
    length = room / static_cast<int>(ordered.size());
    source_.runs(ordered, now, length, runs);
  }
  int added = 0;
  auto next = runs.begin();
  for (const Claimed& head : heads) {
    claim.messages.push_back(head);
    if (!head.ordered) continue;
    int of_head = 0;
    bool broken = false;
    for (; next != runs.end() && same_channel(*next, head); ++next) {
      broken = broken || !is_deliverable(*next, now);
      if (broken) continue;
      claim.messages.push_back(*next);
      ++of_head;
    }
    if (length > 0 && of_head == length) claim.more_is_due = true;
    added += of_head;
  }
  return added;
}

void bury_expired(const Claimed& message, Settlement& settlement) {
  settlement.burials.push_back(
      {.message = &message, .reason = "expired", .error = {}, .charged = false, .block_as_registered = true});
}

void dispose(const Batch& leftovers, Micros now, Settlement& settlement) {
  for (const Claimed& message : leftovers) {
    if (message.uncommitted) {
      settlement.removed.push_back(&message);
    } else if (!message.has_payload) {
      settlement.burials.push_back({&message, "discarded",
                                    Error("02000", "payload of message is missing", "Its row in mq_payloads is gone."),
                                    false, false});
    } else if (message.orphan && message.expires_at > now) {
      settlement.snoozes.push_back({&message, now});
    } else if (message.attempts_left > 0 || message.expires_at <= now) {
      bury_expired(message, settlement);
    } else {
      std::optional<Error> error;
      if (message.outside)
        error = Error(kLeaseRanOut, "lease of the last attempt ran out",
                      "A consumer outside the server had it, and neither deleted the message nor kept it alive.");
      settlement.burials.push_back({&message, "exhausted", error, false, false});
    }
  }
}

}  // namespace mq
