// Sending: validates messages and writes their rows.
//
// The SQL functions of api/send.cpp, mq_call, mq_redrive and schedules (timetable.cpp) use Sender. It
// lives for a call, and only this process sees it. Append locks cover the tails of ordered channels to the end of
// the transaction. Wake-ups, low-water marks and row counts go to the commit actions.
#pragma once

#include <vector>

#include "pg/arguments.hpp"
#include "pg/statement.hpp"
#include "queue/message.hpp"
#include "queue/prerequisites.hpp"

namespace mq {

// A message as the caller gave it. Sender::add validates it.
struct NewMessage {
  Value id, delay, retries, retry_backoff, channel_name, channel_args, commit_interval, ordered, name, payload_json,
      payload_bytes;  // payload_json is text or jsonb, see Sender::Json
  Value dedup_key = {};
  Value headers = {}, priority = {}, keep = {};  // jsonb, smallint, interval; a priority of NULL is 0
  // The messages that it waits for (prerequisites.hpp), each once; must outlive the Sender. nullptr: none.
  const std::vector<Uuid>* after = nullptr;
};

struct NewRow;

class Sender {
 public:
  enum class Json { kText, kJsonb };  // the type of payload_json
  // `numbered`: errors say which message, counted from 1.
  Sender(Json json, bool numbered) : json_(json), numbered_(numbered) {}

  // Before add(): the messages expire an interval after the transaction began. Throws 22023.
  void expire_after(Datum interval);
  // Validates the message and keeps it. Throws 22004, 22023, 22P02 or 22P05, naming the field.
  void add(const NewMessage& message);
  // The messages may have ids that messages had before.
  void reuse_ids() { reuses_ids_ = true; }
  // Writes all messages in the order in which they were added. None may have a dedup_key. Needs an
  // OwnerScope and an SPI connection. Throws 40001 if the snapshot of a REPEATABLE READ or
  // SERIALIZABLE transaction does not show the tail of an ordered channel; 53400 for a channel that is full.
  void send();
  // Writes the only message that was added, unless another is pending under its dedup_key. Returns
  // the id of the message that is pending then. Throws as send() does, 40001 also if the snapshot
  // does not show the other message, and 27000 if a trigger, rule or policy keeps the row out.
  Uuid send_once();

  const std::vector<Uuid>& ids() const { return ids_; }

 private:
  struct Checked {
    Uuid id;
    Uuid follows;  // if ordered
    const std::vector<Uuid>* after;
    bool waits;  // for some of those; its attempt_at is infinity
    Micros due_at;
    Micros attempt_at, retry_backoff, commit_interval;
    std::int64_t channel_key, seq;
    std::string_view channel_name, channel_args, name, dedup_key;
    Value payload_json, payload_bytes, headers, keep;
    std::int32_t retries;
    std::int16_t priority;
    bool ordered, two_phase, fair;
  };

  // The tails that link() found and set; for the commit actions once the messages are written.
  struct Links;
  void reserve_room() const;
  Links link();
  static void enter(const Links& links);
  std::vector<Param> parameters() const;
  void fill(const Checked& message, NewRow& row) const;
  // Decides which messages get an entry in mq_msgs_fair (queue/fairness.hpp).
  void choose_fair();
  void note_channels() const;
  // Finds out which messages have to wait, and writes what they wait for once they are written.
  void find_prerequisites();
  void write_prerequisites() const;
  void announce() const;

  const Json json_;
  const bool numbered_;
  bool reuses_ids_ = false;
  prerequisites::States states_;  // of what the messages wait for
  Micros expires_at_ = kNever;
  std::vector<Checked> messages_;
  std::vector<Uuid> ids_;
};

}  // namespace mq
