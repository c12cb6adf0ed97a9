// The arguments that the SQL functions that send have in common; mq_call and mq_publish have them, too. No state.
#pragma once

#include <vector>

#include "pg/arguments.hpp"
#include "queue/sender.hpp"

namespace mq {

// Reads the arguments that functions which send have in this order, with which mq_send begins: the channel's
// name, which is the first of all; and, from position `name` on, name (if that is NULL, the first of all),
// channel_args, ordered, delay, retries, retry_backoff, commit_interval and payload_bytes. Sender::add validates them.
NewMessage common_arguments(FunctionCallInfo fcinfo, int name = 2);

// Reads the last arguments of a function that sends: `priority` is the position of the first of them, then come
// headers, after and keep. `after` is for message.after. Throws 22004 or 22023, naming the argument.
void set_options(FunctionCallInfo fcinfo, int priority, std::vector<Uuid>& after, NewMessage& message);

}  // namespace mq
