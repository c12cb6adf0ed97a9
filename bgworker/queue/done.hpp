// Done: the history. A handled message that is kept goes to mq_done with its result, in the transaction
// that handled it. Settle writes it for handlers, removal.cpp for consumers outside the server; the sweep
// (maintenance.cpp) forgets it. It owns no state.
//
// All need an OwnerScope and an SPI connection.
#pragma once

#include <functional>
#include <vector>

#include "pg/statement.hpp"
#include "queue/settlement.hpp"

namespace mq {

// Before rows are added to a table that others may lock for long (CREATE INDEX, say): a worker does
// not wait for that. It throws 55P03; the messages that need it are put off, and others go on.
void lock_to_write(const char* table);

// Write those of the messages that are to be kept.
void keep_handled(const std::vector<Handling>& handled);
void keep_consumed(const std::vector<Consumption>& consumed);

// For the RETURNING of a DELETE of mq_msgs AS m by a consumer outside the server: how long the message is to be
// kept, and then its row; both NULL if it is not, or was not leased.
#define KEPT_IF_CONSUMED                                                                                     \
  "CASE WHEN m.lease IS NOT NULL THEN COALESCE(m.keep, (SELECT h.keep FROM $S.mq_handlers h"                 \
  "   WHERE h.channel_name = m.channel_name AND (h.message_name IS NULL OR h.message_name = m.message_name)" \
  "   ORDER BY h.message_name IS NULL LIMIT 1)) END,"                                                        \
  " CASE WHEN m.lease IS NOT NULL AND (m.keep IS NOT NULL OR EXISTS (SELECT FROM $S.mq_handlers h"           \
  "   WHERE h.channel_name = m.channel_name AND h.keep IS NOT NULL)) THEN m END"
// Writes the messages that the caller has removed. `column`: where KEPT_IF_CONSUMED begins in the rows.
// `result(id)` is a Param with the message's result (jsonb), or a null one.
void keep_consumed(const Rows& removed, int column, const std::function<Param(const Uuid& id)>& result);

}  // namespace mq
