#include "queue/done.hpp"

#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/refused_rows.hpp"
#include "pg/row_locks.hpp"
#include "pg/sequences.hpp"
#include "queue/claimed_rows.hpp"

extern "C" {
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
}

namespace mq {

namespace {

// The rows to be written, by column.
struct DoneRows {
  ArrayParam ids{UUIDOID}, channels{TEXTOID}, args{TEXTOID}, names{TEXTOID}, ordered{BOOLOID}, priorities{INT2OID},
      headers{JSONBOID}, json{JSONBOID}, bytes{BYTEAOID}, results{JSONBOID}, attempts{INT4OID}, created{TIMESTAMPTZOID},
      due{TIMESTAMPTZOID}, started{TIMESTAMPTZOID}, finished{TIMESTAMPTZOID}, until{TIMESTAMPTZOID}, keys{INT8OID};
  std::size_t size = 0;
};

Param stored(const void* varlena) {
  return varlena == nullptr ? Param() : Param(PointerGetDatum(varlena));
}

// All columns but due and started.
void add(DoneRows& rows, const Claimed& m, const void* result, Micros ended, Micros keep) {
  ++rows.size;
  rows.ids.add(uuid_datum(m.id));
  rows.channels.add(text_datum(m.channel_name));
  rows.args.add(text_datum(m.channel_args));
  rows.names.add(text_datum(m.name));
  rows.ordered.add(BoolGetDatum(m.ordered));
  rows.priorities.add(Int16GetDatum(m.priority));
  rows.headers.add(stored(m.headers));
  rows.json.add(stored(m.payload_json));
  rows.bytes.add(stored(m.payload_bytes));
  rows.results.add(stored(result));
  rows.attempts.add(Int32GetDatum(m.attempts + 1));
  rows.created.add(m.created_at ? Param(TimestampTzGetDatum(*m.created_at)) : Param());
  rows.finished.add(TimestampTzGetDatum(ended));
  rows.until.add(TimestampTzGetDatum(ended + keep));
  rows.keys.add(Int64GetDatum(m.channel_key));
}

void write(const DoneRows& rows) {
  static Statement insert(
      "INSERT INTO $S.mq_done (id, channel_name, channel_args, name, ordered, priority, headers, payload_json,"
      "  payload_bytes, result, attempts, created_at, due_at, started_at, finished_at, keep_until, channel_key, run_by)"
      " SELECT r.*, $18 FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) AS r",
      {UUIDARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, BOOLARRAYOID, INT2ARRAYOID, JSONBARRAYOID, JSONBARRAYOID,
       BYTEAARRAYOID, JSONBARRAYOID, INT4ARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID,
       TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, INT8ARRAYOID, TEXTOID});
  if (rows.size == 0) return;
  row_locks::lock_to_write("mq_done");
  const char* role = guard::call([] { return GetUserNameFromId(OwnerScope::caller(), false); });
  const Rows written = sequences::insert(sequences::Numbered::kDone, [&] {
    return insert.run({rows.ids.datum(), rows.channels.datum(), rows.args.datum(), rows.names.datum(),
                       rows.ordered.datum(), rows.priorities.datum(), rows.headers.datum(), rows.json.datum(),
                       rows.bytes.datum(), rows.results.datum(), rows.attempts.datum(), rows.created.datum(),
                       rows.due.datum(), rows.started.datum(), rows.finished.datum(), rows.until.datum(),
                       rows.keys.datum(), text_datum(role)});
  });
  if (written.size() < rows.size) throw refused("mq_done", "being added");
}

}  // namespace

void keep_handled(const std::vector<Handling>& handled) {
  DoneRows rows;
  for (const Handling& h : handled) {
    if (!h.keep) continue;
    add(rows, *h.message, h.result, h.ended, *h.keep);
    rows.due.add(TimestampTzGetDatum(h.started - h.waited));
    rows.started.add(TimestampTzGetDatum(h.started));
  }
  write(rows);
}

void keep_consumed(const std::vector<Consumption>& consumed) {
  DoneRows rows;
  const Micros now = GetCurrentTimestamp();
  for (const Consumption& c : consumed) {
    if (!c.keep) continue;
    add(rows, *c.message, c.result, now, *c.keep);
    rows.due.add(Param());
    rows.started.add(Param());
  }
  write(rows);
}

void keep_removed(const Rows& removed, int column) {
  const AttrNumber* numbers = attribute_numbers(Extension::msgs());
  Batch batch;
  batch.reserve(removed.size());  // `consumed` points into it
  std::vector<Consumption> consumed;
  for (std::size_t i = 0; i < removed.size(); ++i) {
    if (removed.is_null(i, column)) continue;
    const Datum composite = removed.get(i, column + 1);
    LockedRow row;
    guard::call([&] {
      for (int c = 0; c < kColumns; ++c)
        row.values[c] = GetAttributeByNum(DatumGetHeapTupleHeader(composite), numbers[c], &row.nulls[c]);
      ItemPointerSetInvalid(&row.location);
    });
    Claimed& message = append(row, batch);
    message.attempts = DatumGetInt32(row.values[kAttempts]) - 1;  // its lease has charged this one
    consumed.push_back({&message, micros_of_interval(removed.get(i, column))});
  }
  keep_consumed(consumed);
}

}  // namespace mq
