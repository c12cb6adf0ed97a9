// Claim: which due messages make the next batch. Nothing else decides that.
//
// Workers and mq_run (worker/), leased handlers (leased/lease_store.cpp) and mq_poll
// (api/consuming.cpp) call Claimer. It keeps notes of its last claims, which only this process sees;
// the server's row locks (pg/row_locks.hpp) hold the messages.
//
// 1. Channel names with a greater priority come first; equals share the batch evenly.
// 2. Within a channel name messages of a greater priority come first, and of one priority the oldest.
// 3. When more messages of priority 0 are due than a channel name's share has room for, up to a quarter
//    of that room is a fair sample: one message a channel, from a random channel on. So a channel with
//    a million messages cannot shut out a channel with one. A sample that is slow, as its rows are not
//    in memory, ends sooner. The next few claims go without a sample after a fruitless one.
// 4. Of a channel name with a rate no more messages are claimed than calls may begin now (rates.hpp).
// 5. Where ordered channels have long runs, one head in sixteen of a share brings its followers along:
//    for each run one row becomes the next head, and not for each message.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "pg/clock.hpp"
#include "queue/settlement.hpp"
#include "shmem/low_water_marks.hpp"

namespace mq {

// A channel name to claim from.
struct Source {
  std::string_view channel_name;
  int most;          // messages that it may give to this batch
  int priority = 0;  // a greater one goes first
};

struct Claim {
  // Can be delivered: by channel name, then by priority, then by (attempt_at, seq), followers behind
  // their head.
  Batch messages;
  // Cannot be delivered: expired, two-phase and not committed in time, leased to a call that is
  // gone, or no attempt left. The caller gives them to settle_undeliverable().
  Batch undeliverable;
  bool more_is_due = false;  // the limit ended the claim: more messages may be due
  // So many were put off, as limits let no call of their channels begin now, or are due again (rates.hpp, running.hpp).
  // The transaction is to be committed even if the claim has found nothing else.
  std::size_t put_off = 0;
};

class Claimer {
 public:
  explicit Claimer(Clock& clock) : clock_(clock) {}

  // Up to `limit` messages, undeliverable ones included. `with_runs`: followers of heads as well.
  // Needs a transaction and an SPI connection; the texts of the messages live as long as that. The
  // messages are locked to the end of the transaction, or see claim_unlocked(); those that other
  // sessions have locked or claimed are passed over, so nothing here waits. A head is an unordered message, or the
  // first of an ordered channel.
  Claim claim(const std::vector<Source>& sources, int limit, bool with_runs);

  // Begins a claim from these channel names, as claim() does: reads the cancel notes, and looks for what may make
  // messages due: headless channels, channels that have room under their limit again, dependents to look at again,
  // marks that are too high.
  void begin(std::span<const std::string_view> channel_names);
  // Whether claims leave the look for what may make messages due to a later claim.
  void look_later(bool later) { look_later_ = later; }
  // From here on claims pass over messages that cannot be delivered, and take no fair sample: while
  // a dump is restored no message may be dead-lettered.
  void leave_undeliverable() { undeliverable_left_ = true; }
  // From here on messages that only wait for their removal may be claimed without a row lock. For a
  // worker that ends each transaction soon.
  void claim_unlocked() { unlocked_ = true; }
  // From here on the messages of a claim are handled one after another, in the claim's transaction: see running.hpp.
  void handle_one_by_one() { one_by_one_ = true; }
  // Whether the last claim left notes of channels without a head, or of messages that may wait for nothing any more:
  // transactions in progress are at them, and their ends may wake nobody.
  bool left_notes() const { return left_notes_; }
  // For a claim that found nothing: whether a low-water mark was too high, so that it missed some.
  bool overlooked();

 private:
  // The state of a channel name during one claim.
  struct Scan {
    std::string_view channel_name;
    int priority = 0;
    int most = 0;                         // messages that it may still give
    int level = 0;                        // the priority of messages that the scan has come to
    std::optional<Position> behind = {};  // where the scan of the oldest of those has come to
    bool more = true;                     // more may be due behind that, or with less priority
    bool limited = false;                 // no more calls of the name than `most` may begin now
    bool runs = false;                    // its share has few heads, and their followers
    int longest = 1;                      // messages of the longest run so far
    Batch found = {};                     // holds no message twice
    Batch ready = {};                     // of those, what can be delivered, and followers
  };

  // How long a channel name goes without a sample: what ends first.
  struct Unsampled {
    int claims;
    Micros until;  // by the steady clock
  };

  // Claims up to `limit` messages from channel names of one priority; returns how many it claimed.
  int claim_equals(std::span<Scan> scans, int limit, bool with_runs, Micros now, Claim& claim);
  // Goes to the next lower priority of which the name may have due messages.
  void descend(Scan& scan, Micros now);
  // Each adds up to `limit` (`share`) messages to scan.found, and returns how many were new. take_above()
  // ends with the priorities above 0.
  int take_level(Scan& scan, int limit, Micros now);
  int take_above(Scan& scan, int limit, Micros now);
  int take_oldest(Scan& scan, int limit, Micros now);
  int sample(Scan& scan, int limit, Micros now);
  int take_share(Scan& scan, int share, Micros now);
  // Adds `heads`, and up to `room` followers that can be delivered; returns how many followers.
  int add_found(Scan& scan, std::size_t from, int room, Micros now, Claim& claim);
  int add_with_runs(const Batch& heads, int room, Micros now, Scan& scan, Claim& claim, bool& long_runs);

  bool heeds_priorities() const;

  // The oldest due heads of the channel name and priority, only those behind `after` if that is given.
  void oldest(std::string_view channel_name, int priority, Micros now, std::optional<Position> after, int limit,
              Batch& batch);
  // One due head of each of up to `limit` channels of the name, by channel_key from `start` on; of fewer
  // where that takes long.
  void fair(std::string_view channel_name, Micros now, std::int64_t start, int limit, Batch& batch);

  Clock& clock_;
  std::vector<std::string> names_;  // channel names of the current claim
  bool undeliverable_left_ = false;
  bool unlocked_ = false;
  bool one_by_one_ = false;
  bool look_later_ = false;
  bool left_notes_ = false;
  std::size_t served_ = 0;    // messages that the current claim has made due, see running.hpp
  bool prioritized_ = false;  // during a claim: there are messages of other priorities than 0
  // Channel names whose last sample found nothing new.
  std::map<std::string, Unsampled, std::less<>> unsampled_;
  // Names whose last claim had followers behind its heads, or no room to look for them.
  std::set<std::string, std::less<>> long_runs_;
};

}  // namespace mq
