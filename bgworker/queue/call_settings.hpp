// Call settings: mq.message_id, mq.channel_name, mq.channel_args, mq.attempt and mq.traceparent,
// which tell a handler about its call.
//
// mq.c defines them. Nothing is stored in them: a look makes the value, so a call that nobody asks
// about costs nothing. What a look reads depends on where it runs:
//   - in a transactional call, the messages of the current call (current_call.hpp);
//   - in a leased call of mq_run, the text that LocalCall was given;
//   - in the session of another leased call, that text in $2 of the statement that calls the
//     handler. The worker sends it, and nobody else speaks to the session;
//   - in a parallel worker, that text in the hidden setting mq.call. The leader sets it before a
//     query that may start parallel workers, and the server hands it over with all settings.
// A setting is what all messages of the call have in common. Where they differ it is empty.
#pragma once

#include <span>
#include <string>

#include "queue/message.hpp"

namespace mq {

// What the settings of a call with these messages are, as a text.
std::string call_text(std::span<const Claimed* const> messages);

// A leased call in this very process, from its beginning to its end, also if that is an error.
class LocalCall {
 public:
  explicit LocalCall(const std::string& text);
  ~LocalCall();
  LocalCall(const LocalCall&) = delete;
  LocalCall& operator=(const LocalCall&) = delete;

 private:
  const std::string* const before_;
};

}  // namespace mq
