// Claim: which due messages make the next batch. The only place that decides it, for workers, mq_run and
// mq_poll.
//
// Channel names with a greater priority come first, and share a batch evenly among equals. Within a name the oldest
// come first. When more is due than the batch takes, a quarter of it is drawn one message a
// channel, from a random channel on, so that a channel with a million messages cannot shut out one with one. A
// draw that finds nothing new is not tried again for a few claims.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ports.hpp"

namespace mq {

// SQLSTATE of a dead message whose last lease, of a consumer outside the server, ran out. The server uses no class MQ.
inline constexpr const char* kLeaseRanOut = "MQ001";

// A channel name to claim from, and the most that it may give to this batch.
struct Source {
  std::string_view channel_name;
  int most;
  int priority = 0;  // what those with a greater one have left is for those with a smaller
};

struct Claim {
  // Can be delivered, channel names together, within one by (attempt_at, place), a run behind its head.
  Batch messages;
  // Cannot: expired, two-phase and not committed in time, no attempt left, or no payload. See `dispose`.
  Batch leftovers;
  bool more_is_due = false;  // the limit ended the claim, not the queue
};

class Claimer {
 public:
  Claimer(ClaimSource& source, Clock& clock) : source_(source), clock_(clock) {}

  // Up to `limit` messages. `with_runs`: take what follows an ordered head as well.
  Claim claim(const std::vector<Source>& sources, int limit, bool with_runs);

 private:
  // A channel name while it is claimed from.
  struct Scan {
    std::string_view channel_name;
    int priority = 0;
    int most = 0;                         // that it may still give
    std::optional<Position> behind = {};  // where the scan of the oldest is
    bool more = true;                     // there may be more behind that
    Batch found = {};                     // no message twice
  };

  // What channel names of one priority give, up to `limit`; returns how many that was.
  int claim_equals(std::span<Scan> scans, int limit, bool with_runs, Micros now, Claim& claim);
  // Each takes up to a number of messages that the scan has not found yet, and returns how many.
  int take_oldest(Scan& scan, int limit, Micros now);
  int draw(Scan& scan, int limit, Micros now);
  int take_share(Scan& scan, int share, Micros now);
  // Adds what can be delivered behind the ordered ones of `heads`; returns how many.
  int add_with_runs(const Batch& heads, int room, Micros now, Claim& claim);

  ClaimSource& source_;
  Clock& clock_;
  // Claims of a channel name that still go without a draw: the last one found nothing but the oldest.
  std::map<std::string, int, std::less<>> undrawn_;
};

bool is_deliverable(const Claimed& message, Micros now);
// Settles what cannot be delivered: two-phase messages that nobody committed go, those whose leaseholder is gone are
// given back, the others are dead letters.
void dispose(const Batch& leftovers, Micros now, Settlement& settlement);
void bury_expired(const Claimed& message, Settlement& settlement);

}  // namespace mq
