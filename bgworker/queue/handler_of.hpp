// The registered handler of a message, for queries: that of its name, or else that of every other name
// (handlers/registry.hpp has the same of a worker's own). NULL: no handler takes it. No state.
#pragma once

#define HANDLER_OF(columns, channel_name, message_name)                            \
  "(SELECT " columns " FROM $S.mq_handlers h WHERE h.channel_name = " channel_name \
  "   AND (h.message_name IS NULL OR h.message_name = " message_name ") ORDER BY h.message_name IS NULL LIMIT 1)"
