// Listeners: whether this session LISTENs to a channel of ours ("mq", "mq_..."), so that with mq.notify = auto who
// sends knows whether anybody could hear of it. The server does not tell who listens; the utility hook does.
//
// LISTEN counts from before its commit on, UNLISTEN * and DISCARD ALL stop counting at theirs. UNLISTEN of a single
// channel, or in a subtransaction, is not followed: the session counts until it ends, which costs nobody a message.
#pragma once

namespace mq::listeners {

// From the hook, after the statement was accepted; its transaction is open.
void listen(const char* channel);
void unlisten_all();

}  // namespace mq::listeners
