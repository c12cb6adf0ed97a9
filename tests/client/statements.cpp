#include "statements.hpp"

namespace client {

namespace {

constexpr std::string_view kInsert =
    "SELECT mq_insert(ARRAY[($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)::mq_new_t])";
constexpr std::string_view kPoll = "SELECT * FROM mq_poll($1, $2)";
constexpr std::string_view kDelete = "SELECT mq_delete(ARRAY[$1])";
constexpr std::string_view kDeleteMany = "SELECT mq_delete($1)";
constexpr std::string_view kKeepAlive = "SELECT mq_keep_alive(ARRAY[$1], $2)";
constexpr std::string_view kCheckpoint = "SELECT mq_checkpoint($1, $2, $3, $4, $5)";
constexpr std::string_view kCommit = "SELECT mq_commit($1)";
constexpr std::string_view kClear = "SELECT mq_clear($1)";
constexpr std::string_view kClearAll = "SELECT mq_clear_all()";
constexpr std::string_view kExists = "SELECT EXISTS(SELECT id FROM mq_msgs WHERE id = $1)";
constexpr std::string_view kReceive =
    "SELECT id, name, payload_json::text, attempt, lease FROM mq_receive($1, $2, $3, $4)";
constexpr std::string_view kAck = "SELECT mq_ack($1, $2)";
constexpr std::string_view kNack = "SELECT mq_nack($1, $2, $3, NULL, $4)";
constexpr std::string_view kExtend = "SELECT mq_extend($1, $2, $3)";
constexpr std::string_view kTruncate = "TRUNCATE TABLE mq_payloads";
constexpr std::string_view kDeletePayloads = "DELETE FROM mq_payloads";
constexpr std::string_view kDeleteRest = "DELETE FROM mq_msgs WHERE id <> $1";

template <class Read>
auto value(const Result& rows, int row, int column, Read read) -> std::optional<decltype(read(std::string_view()))> {
  if (rows.null(row, column)) return std::nullopt;
  return read(rows.bytes(row, column));
}

std::string read_string(std::string_view bytes) {
  return std::string(bytes);
}

Ids read_ids(const Result& rows) {
  Ids ids;
  for (int row = 0; row < rows.rows(); ++row) ids.push_back(read_uuid(rows.bytes(row, 0)));
  return ids;
}

std::int32_t read_int4(std::string_view bytes) {
  std::uint32_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<unsigned char>(byte);
  return static_cast<std::int32_t>(value);
}

}  // namespace

Id insert(Session& session, const Job& job) {
  session.run(kInsert, {uuid(job.id), interval(job.delay), int4(job.retries), interval(job.retry_backoff),
                        text(job.channel_name), text(job.channel_args), interval(job.commit_interval),
                        boolean(job.ordered), text(job.name), text(job.json), bytea(job.bytes)});
  return job.id;
}

std::vector<Polled> poll(Session& session, const std::optional<Names>& channel_names, int batch_size) {
  const Result rows = session.run(kPoll, {texts(channel_names), int4(batch_size)});
  std::vector<Polled> polled;
  for (int row = 0; row < rows.rows(); ++row)
    polled.push_back({value(rows, row, 0, read_uuid), value(rows, row, 1, read_bool), value(rows, row, 2, read_string),
                      value(rows, row, 3, read_string), value(rows, row, 4, read_string),
                      value(rows, row, 5, read_interval), value(rows, row, 6, read_interval)});
  return polled;
}

void remove(Session& session, const Id& id) {
  session.run(kDelete, {uuid(id)});
}

void remove(Session& session, const Ids& ids) {
  session.run(kDeleteMany, {uuids(ids)});
}

void keep_alive(Session& session, const Id& id, Micros duration) {
  session.run(kKeepAlive, {uuid(id), interval(duration)});
}

void checkpoint(Session& session, const Id& id, const Checkpoint& checkpoint) {
  session.run(kCheckpoint, {uuid(id), interval(checkpoint.duration), text(checkpoint.json), bytea(checkpoint.bytes),
                            int4(checkpoint.extra_retries)});
}

void commit(Session& session, const Ids& ids) {
  session.run(kCommit, {uuids(ids)});
}

std::vector<Received> receive(Session& session, const std::optional<Names>& channel_names, int batch_size, Micros lease,
                              Micros wait) {
  const Result rows = session.run(kReceive, {texts(channel_names), int4(batch_size), interval(lease), interval(wait)});
  std::vector<Received> received;
  for (int row = 0; row < rows.rows(); ++row)
    received.push_back({read_uuid(rows.bytes(row, 0)), read_string(rows.bytes(row, 1)),
                        value(rows, row, 2, read_string), read_int4(rows.bytes(row, 3)),
                        read_int8(rows.bytes(row, 4))});
  return received;
}

Ids ack(Session& session, const Ids& ids, std::int64_t lease) {
  return read_ids(session.run(kAck, {uuids(ids), int8(lease)}));
}

Ids nack(Session& session, const Ids& ids, std::int64_t lease, const std::string& error, Micros retry_in) {
  return read_ids(session.run(kNack, {uuids(ids), int8(lease), text(error), interval(retry_in)}));
}

Ids extend(Session& session, const Ids& ids, std::int64_t lease, Micros by) {
  return read_ids(session.run(kExtend, {uuids(ids), int8(lease), interval(by)}));
}

void clear(Session& session, const Names& channel_names) {
  session.run(kClear, {texts(channel_names)});
}

void clear_all(Session& session) {
  session.run(kClearAll);
}

bool exists(Session& session, const Id& id) {
  return read_bool(session.run(kExists, {uuid(id)}).bytes(0, 0));
}

void listen(Session& session, const std::optional<Names>& channel_names) {
  if (!channel_names) return session.execute("LISTEN \"mq\"");
  for (const std::string& name : *channel_names) session.execute("LISTEN \"mq_" + name + "\"");
}

void clean_up(Session& session, bool truncates) {
  session.run(truncates ? kTruncate : kDeletePayloads);
  session.run(kDeleteRest, {uuid(Id())});
}

std::vector<Statement> statements() {
  return {
      {kInsert, {kUuid, kInterval, kInt4, kInterval, kText, kText, kInterval, kBool, kText, kText, kBytea}},
      {kPoll, {kTextArray, kInt4}},
      {kDelete, {kUuid}},
      {kDeleteMany, {kUuidArray}},
      {kKeepAlive, {kUuid, kInterval}},
      {kCheckpoint, {kUuid, kInterval, kText, kBytea, kInt4}},
      {kCommit, {kUuidArray}},
      {kExists, {kUuid}},
      {kTruncate, {}},
      {kDeleteRest, {kUuid}},
  };
}

std::vector<Statement> clearing_statements() {
  return {{kClear, {kTextArray}}, {kClearAll, {}}};
}

std::vector<Statement> receiving_statements() {
  return {{kReceive, {kTextArray, kInt4, kInterval, kInterval}},
          {kAck, {kUuidArray, kInt8}},
          {kNack, {kUuidArray, kInt8, kText, kInterval}},
          {kExtend, {kUuidArray, kInt8, kInterval}}};
}

Names delivery_columns() {
  return {"id uuid", "name text", "payload_json text", "attempt int4", "lease int8"};
}

Names poll_columns() {
  return {"id uuid",           "is_committed bool",   "name text",
          "payload_json text", "payload_bytes bytea", "retry_backoff interval",
          "wait_time interval"};
}

}  // namespace client
