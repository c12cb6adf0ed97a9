// Done: the history. A handled message that is kept goes to mq_done with its result, in the transaction
// that handled it. Settle writes it for handlers, removal.cpp for consumers outside the server; the sweep
// (maintenance.cpp) forgets it. It owns no state.
//
// All need an OwnerScope and an SPI connection.
#pragma once

#include <vector>

#include "pg/statement.hpp"
#include "queue/handler_of.hpp"
#include "queue/settlement.hpp"

namespace mq {

// Write those of the messages that are to be kept. Throw 55P03 in a worker, where the table is locked.
void keep_handled(const std::vector<Handling>& handled);
void keep_consumed(const std::vector<Consumption>& consumed);

// For the RETURNING of a DELETE of mq_msgs AS m by a consumer outside the server: how long the message is to be
// kept, and then its row; both NULL if it is not, or was not leased.
#define KEPT_IF_CONSUMED \
  "CASE WHEN m.lease IS NOT NULL THEN COALESCE(m.keep, " HANDLER_OF("h.keep", "m.channel_name", "m.message_name") ") END," \
  " CASE WHEN m.lease IS NOT NULL AND (m.keep IS NOT NULL OR EXISTS (SELECT FROM $S.mq_handlers h"           \
  "   WHERE h.channel_name = m.channel_name AND h.keep IS NOT NULL)) THEN m END"
// Writes the messages that the caller has removed, without results. `column`: where KEPT_IF_CONSUMED begins in
// the rows.
void keep_removed(const Rows& removed, int column);

}  // namespace mq
