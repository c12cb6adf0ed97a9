// Listeners: counts this session in shared memory while it LISTENs to a channel whose name begins
// with "mq". So with mq.notify = auto a sender knows whether a session could hear a NOTIFY. The
// server does not tell which sessions listen. The utility hook (api/utility.cpp) does: it calls
// these functions. The state is this process's; the count is an atomic in shared memory.
//
// LISTEN counts from before its commit on. UNLISTEN * and DISCARD ALL end the count at their
// commit. UNLISTEN of a single channel, or in a subtransaction, changes nothing: the session counts
// until it ends. That loses no message.
#pragma once

namespace mq::listeners {

// Called after the statement was accepted, in its open transaction.
void listen(const char* channel);
void unlisten_all();

}  // namespace mq::listeners
