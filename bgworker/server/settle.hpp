// Settle over the tables: removes, retries, buries. The only place that does, for workers, mq_run, mq_poll,
// mq_delete and the sweep.
#pragma once

#include <vector>

#include "../ports.hpp"
#include "spi.hpp"

namespace mq {

class SqlSettler : public Settler {
 public:
  // What was handled and what failed, and where that leaves each ordered channel, within the current
  // transaction. Needs an SPI connection.
  void settle(const Settlement& settlement) override;
  bool was_held(const Error& error) override;
};

// Deletes messages and their payloads; the first message that is left in each ordered channel whose head went
// becomes head. Waits only for somebody who holds one of these rows, a worker not even for that (row_locks).
// `consumed`: those that are leased were handled by who calls, and count as that.
void remove_messages(const std::vector<Uuid>& ids, bool consumed = false);

// The same for those of the messages that are dead and block their channels (on_dead => 'block'), and for payloads
// without a message.
void remove_blocking(const std::vector<Uuid>& ids);

// Deletes every message of the named channels; a null Param: of all.
void clear_messages(const Param& channel_names);

}  // namespace mq
