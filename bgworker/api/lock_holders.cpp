// mq_row_holders: the transactions that have locked due messages.
//
// mq_health() calls it through mq.c. The file owns no state.

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "entries.h"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/result_set.hpp"
#include "pg/row_lockers.hpp"
#include "pg/statement.hpp"

namespace mq {

namespace {

constexpr int kLooked = 100;  // messages of a channel name, at most

}  // namespace

}  // namespace mq

extern "C" Datum mq_row_holders_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    static mq::Statement due(
        "WITH RECURSIVE n (name) AS ("
        "  SELECT (SELECT m.channel_name FROM $S.mq_heads m ORDER BY m.channel_name LIMIT 1)"
        "  UNION ALL SELECT (SELECT m.channel_name FROM $S.mq_heads m WHERE m.channel_name > n.name"
        " ORDER BY m.channel_name LIMIT 1) FROM n WHERE n.name IS NOT NULL)"
        " SELECT d.location, n.name FROM n CROSS JOIN LATERAL (SELECT m.location FROM $S.mq_heads m"
        "   WHERE m.channel_name = n.name AND m.attempt_at <= pg_catalog.clock_timestamp()"
        " ORDER BY m.attempt_at, m.seq LIMIT $1) AS d",
        {INT8OID});
    mq::ResultSet result(fcinfo);
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    const Oid table = mq::Extension::msgs();
    const mq::Rows rows = due.run({Int64GetDatum(mq::kLooked)});
    using Holder = std::pair<int, TransactionId>;
    std::map<std::pair<Holder, std::string>, std::int64_t> held;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const mq::Lockers lockers = mq::lockers_of(table, rows.get(i, 1));
      std::set<Holder> holders;
      for (int k = 0; k < lockers.count; ++k) {
        const mq::Locker& locker = lockers.lockers[k];
        holders.emplace(locker.pid, locker.pid == 0 ? locker.transaction : InvalidTransactionId);
      }
      for (const Holder& holder : holders) ++held[{holder, std::string(mq::text_view(rows.get(i, 2)))}];
    }
    for (const auto& [key, messages] : held)
      result.add({Int32GetDatum(key.first.first),
                  key.first.first == 0 ? mq::Param(TransactionIdGetDatum(key.first.second)) : mq::Param(),
                  mq::text_datum(key.second), Int64GetDatum(messages)});
    return Datum{0};
  });
}
