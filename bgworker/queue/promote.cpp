#include "queue/promote.hpp"

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/plain_table.hpp"
#include "queue/claimed_rows.hpp"

extern "C" {
#include "access/tableam.h"
#include "executor/executor.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/uuid.h"
}

namespace mq {

namespace {

// For the body of guard::call(): after an error the transaction cleans up.
class Promoter {
 public:
  bool open(Oid table, const AttrNumber* numbers) {
    after_ = numbers[kAfter] - 1;
    return updater_.open(table, msgs_columns(numbers));
  }

  bool promote(const FirstMessage& message) {
    if (update(message.location)) return true;
    // A lock FOR KEY SHARE, of an append behind the message or a foreign key, does not go with an
    // UPDATE that must not wait, but with a lock for one.
    ItemPointerData location = message.location;
    TM_FailureData failure;
    const TM_Result result =
        table_tuple_lock(updater_.relation(), &location, GetActiveSnapshot(), updater_.old(), updater_.command(),
                         LockTupleNoKeyExclusive, LockWaitSkip, TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS, &failure);
    return result == TM_Ok && update(message.location, true);
  }

  void close() { updater_.close(); }

 private:
  bool update(const ItemPointerData& location, bool wait = false) {
    return updater_.update(location, wait, [&](Datum* values, bool* nulls) {
      values[after_] = PointerGetDatum(&nil_);
      nulls[after_] = false;
    });
  }

  RowUpdater updater_;
  int after_;
  pg_uuid_t nil_ = {};
};

}  // namespace

std::optional<std::vector<char>> promote(const std::vector<const FirstMessage*>& messages) {
  const Oid table = Extension::msgs();
  const AttrNumber* numbers = attribute_numbers(table);
  std::vector<char> promoted(messages.size(), 0);
  const bool asked = guard::call([&] {
    Promoter promoter;
    if (!promoter.open(table, numbers)) return false;
    for (std::size_t i = 0; i < messages.size(); ++i) {
      CHECK_FOR_INTERRUPTS();
      promoted[i] = promoter.promote(*messages[i]);
    }
    promoter.close();
    return true;
  });
  return asked ? std::optional(std::move(promoted)) : std::nullopt;
}

}  // namespace mq
