#include "claim.hpp"

#include <algorithm>
#include <iterator>
#include <unordered_set>

namespace mq {

namespace {

constexpr int kUndrawn = 4;    // claims without a draw after one that found nothing new
constexpr int kFairShare = 4;  // one message in so many of a batch is drawn fairly

bool deliverable(const Claimed& message) {
  return !message.uncommitted && message.attempts_left > 0 && message.has_payload;
}

// Drops from `batch` everything behind `from` that stands in it before.
void drop_repeats(Batch& batch, std::size_t from) {
  std::unordered_set<Uuid, UuidHash> seen;
  for (std::size_t i = 0; i < from; ++i) seen.insert(batch[i].id);
  const auto repeated = [&](const Claimed& message) { return !seen.insert(message.id).second; };
  batch.erase(std::remove_if(batch.begin() + static_cast<std::ptrdiff_t>(from), batch.end(), repeated), batch.end());
}

bool due_before(const Claimed& a, const Claimed& b) {
  return a.attempt_at != b.attempt_at ? a.attempt_at < b.attempt_at : a.place < b.place;
}

}  // namespace

Claim Claimer::claim(const std::vector<Source>& sources, int limit, bool with_runs) {
  Claim claim;
  if (sources.empty() || limit <= 0) return claim;
  source_.begin();
  const Micros now = clock_.now();
  const auto start = static_cast<std::size_t>(clock_.dice() * static_cast<double>(sources.size()));

  // Each channel name in turn gets an even share of what is left of the batch.
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const Source& source = sources[(start + i) % sources.size()];
    const int left = limit - static_cast<int>(claim.messages.size());
    if (left <= 0) {
      claim.more_is_due = true;
      break;
    }
    const auto waiting = static_cast<int>(sources.size() - i);
    claim_from(source, std::max(1, (left + waiting - 1) / waiting), with_runs, now, claim);
  }
  return claim;
}

void Claimer::claim_from(const Source& source, int limit, bool with_runs, Micros now, Claim& claim) {
  limit = std::min(limit, source.most);
  Batch found;

  // A batch of one is drawn either way by turns.
  int share = limit > 1 ? std::max(1, limit / kFairShare) : (clock_.dice() < 0.5 ? 1 : 0);
  const auto undrawn = undrawn_.find(source.channel_name);
  if (undrawn != undrawn_.end()) {
    share = 0;
    if (--undrawn->second == 0) undrawn_.erase(undrawn);
  }
  const int oldest = limit - share;
  if (oldest > 0) source_.oldest(source.channel_name, now, std::nullopt, oldest, found);
  const bool all = static_cast<int>(found.size()) < oldest;
  if (!all && share > 0) {
    const std::size_t old = found.size();
    const auto key = static_cast<std::int64_t>((clock_.dice() - 0.5) * 18446744073709549568.0);
    source_.fair(source.channel_name, now, key, share, found);
    drop_repeats(found, old);
    if (old > 0 && found.size() == old) undrawn_.emplace(source.channel_name, kUndrawn);
    const int missing = limit - static_cast<int>(found.size());
    if (missing > 0) {
      // The channels of the draw are among the oldest: go on where the first scan ended.
      std::optional<ClaimSource::Position> after;
      if (old > 0) after = ClaimSource::Position{found[old - 1].attempt_at, found[old - 1].place};
      const std::size_t drawn = found.size();
      source_.oldest(source.channel_name, now, after, missing, found);
      drop_repeats(found, drawn);
    }
  }
  if (static_cast<int>(found.size()) >= limit) claim.more_is_due = true;

  std::sort(found.begin(), found.end(), due_before);
  Batch messages;
  for (Claimed& message : found) (deliverable(message) ? messages : claim.leftovers).push_back(message);

  Batch heads;
  std::copy_if(messages.begin(), messages.end(), std::back_inserter(heads),
               [](const Claimed& message) { return message.ordered; });
  const int room = limit - static_cast<int>(messages.size());
  Batch runs;
  if (with_runs && room > 0 && !heads.empty()) {
    if (heads.size() > static_cast<std::size_t>(room)) heads.resize(static_cast<std::size_t>(room));
    source_.runs(heads, now, room / static_cast<int>(heads.size()), runs);
    if (static_cast<int>(runs.size()) >= room) claim.more_is_due = true;
  }

  // A run goes right behind its head, and ends where it is broken: at a message that cannot be delivered.
  auto next = runs.begin();
  for (Claimed& message : messages) {
    const Claimed head = message;
    claim.messages.push_back(message);
    if (!head.ordered) continue;
    bool broken = false;
    for (; next != runs.end() && same_channel(*next, head); ++next) {
      broken = broken || !deliverable(*next);
      if (!broken) claim.messages.push_back(*next);
    }
  }
}

void dispose(const Batch& leftovers, Settlement& settlement) {
  for (const Claimed& message : leftovers) {
    if (message.uncommitted) {
      settlement.removed.push_back(&message);
    } else if (!message.has_payload) {
      settlement.burials.push_back({&message, "discarded",
                                    Error("02000", "payload of message is missing", "Its row in mq_payloads is gone."),
                                    false, false});
    } else {
      settlement.burials.push_back({&message, "exhausted", std::nullopt, false, false});
    }
  }
}

}  // namespace mq
