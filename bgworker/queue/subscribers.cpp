#include "queue/subscribers.hpp"

#include <algorithm>

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/index_scan.hpp"
#include "pg/statement.hpp"
#include "queue/topics.hpp"

extern "C" {
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
}

namespace mq {

namespace {

// Columns of the primary key, and then of the table.
enum Column : AttrNumber { kTopic = 1, kChannelName, kOwnArgs, kChannelArgs, kOrdered };

constexpr RegProcedure kCompare[] = {F_BTTEXTCMP, F_BTTEXTCMP};

// Where an entry stands relative to a key: in the order of the bytes "a" is followed by "a-b", and
// that by "a.b".
enum class At { kEquals, kBeforeDot, kBelow, kBeyond };

struct Entry {
  At at = At::kBeyond;
  bool visible = false;  // if so, and if it equals the key, the row:
  Datum channel_name = 0, channel_args = 0;
  bool own_args = false, ordered = false;
};

// For a body of guard::call.
At place_of(Datum topic, const char* key, std::size_t size) {
  const text* found = DatumGetTextPP(topic);
  const char* bytes = VARDATA_ANY(found);
  const std::size_t length = VARSIZE_ANY_EXHDR(found);
  if (length < size || memcmp(bytes, key, size) != 0) return At::kBeyond;
  if (length == size) return At::kEquals;
  const auto next = static_cast<unsigned char>(bytes[size]);
  return next < '.' ? At::kBeforeDot : next == '.' ? At::kBelow : At::kBeyond;
}

class Patterns {
 public:
  Patterns() : none_(text_datum("")) {
    const Extension& extension = Extension::get();
    const Oid table = extension.relation("mq_subscribers");
    const Oid index = extension.relation("mq_subscribers_pkey");
    guard::call([&] { scan_.open(table, index, kCompare, 2); });
  }

  void close() {
    guard::call([&] { scan_.close(); });
  }

  // As topics::Look; adds the rows of a pattern that matches to `found`.
  bool look(const std::string& key, bool whole, std::vector<Subscriber>& found) {
    if (whole) {
      descend(key);
      Entry entry = next(key);
      for (; entry.at == At::kEquals; entry = next(key))
        if (entry.visible) found.push_back(subscriber(entry));
      if (entry.at != At::kBeforeDot) return entry.at == At::kBelow;
    }
    descend(key + '.');
    return next(key).at == At::kBelow;
  }

 private:
  void descend(const std::string& topic) {
    const Datum position[] = {text_datum(topic), none_};
    guard::call([&] {
      CHECK_FOR_INTERRUPTS();
      scan_.descend(position);
    });
  }

  Entry next(const std::string& key) {
    const char* bytes = key.data();
    const std::size_t size = key.size();
    return guard::call([&] {
      Entry entry;
      bool null = false;
      if (!scan_.next()) return entry;
      entry.at = place_of(scan_.column(kTopic, null), bytes, size);
      if (entry.at != At::kEquals || !scan_.is_visible()) return entry;
      TupleTableSlot* row = scan_.row();
      entry.visible = true;
      entry.channel_name = PointerGetDatum(PG_DETOAST_DATUM_COPY(slot_getattr(row, kChannelName, &null)));
      entry.own_args = DatumGetBool(slot_getattr(row, kOwnArgs, &null));
      entry.channel_args = PointerGetDatum(PG_DETOAST_DATUM_COPY(slot_getattr(row, kChannelArgs, &null)));
      entry.ordered = DatumGetBool(slot_getattr(row, kOrdered, &null));
      return entry;
    });
  }

  static Subscriber subscriber(const Entry& entry) {
    Subscriber found{std::string(text_view(entry.channel_name)), std::nullopt, entry.ordered};
    if (entry.own_args) found.channel_args = text_view(entry.channel_args);
    return found;
  }

  EntryScan scan_;
  const Datum none_;
};

}  // namespace

std::vector<Subscriber> subscribers_of(std::string_view topic) {
  std::vector<Subscriber> found;
  Patterns patterns;
  topics::match(topic, [&](const std::string& key, bool whole) { return patterns.look(key, whole, found); });
  patterns.close();
  return found;
}

}  // namespace mq
