#include "queue/retries.hpp"

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/plain_table.hpp"
#include "pg/statement.hpp"
#include "queue/claimed_rows.hpp"

namespace mq {

int to_charge(const Claimed& message) {
  return message.lease == 0 ? 1 : 0;
}

std::vector<char> write_retries(const std::vector<Retry>& retries) {
  const Oid table = Extension::msgs();
  const AttrNumber* numbers = attribute_numbers(table);
  std::vector<char> written(retries.size(), 0);
  if (has_new_file(table)) return written;
  std::vector<Datum> backoffs;
  backoffs.reserve(retries.size());
  for (const Retry& retry : retries) backoffs.push_back(interval_datum(retry.retry_backoff));
  guard::call([&] {
    RowUpdater updater;
    if (!updater.open(table, msgs_columns(numbers))) return;
    for (std::size_t i = 0; i < retries.size(); ++i) {
      CHECK_FOR_INTERRUPTS();
      const Retry& retry = retries[i];
      if (row_state(updater.relation(), numbers, *retry.message, updater.old()) != RowState::kThere) continue;
      const int charge = to_charge(*retry.message);
      // The claim has locked the row, or else nobody is waited for.
      written[i] = updater.update(item_of(*retry.message), retry.message->locked, [&](Datum* values, bool* nulls) {
        const auto value = [&](ClaimColumn column) -> Datum& { return values[numbers[column] - 1]; };
        value(kAttemptAt) = TimestampTzGetDatum(retry.attempt_at);
        value(kRetryBackoff) = backoffs[i];
        value(kAttemptsLeft) = Int32GetDatum(DatumGetInt32(value(kAttemptsLeft)) - charge);
        value(kAttempts) = Int32GetDatum(DatumGetInt32(value(kAttempts)) + charge);
        value(kFair) = BoolGetDatum(true);
        nulls[numbers[kLeaseToken] - 1] = true;
        nulls[numbers[kAttemptAt] - 1] = false;
      });
    }
    updater.close();
  });
  return written;
}

}  // namespace mq
