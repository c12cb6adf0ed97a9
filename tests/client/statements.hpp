// The statements of a client of the original schema, each exactly as it sends them, and those of mq_receive and
// its like. No other file has any that touches the queue.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "session.hpp"

namespace client {

// What a client says about a job, and what it says if it says nothing.
struct Job {
  Id id = new_id();
  Micros delay = Micros(0);
  int retries = 4;
  Micros retry_backoff = std::chrono::seconds(1);
  std::string channel_name = "";
  std::string channel_args = "";
  std::optional<Micros> commit_interval = std::nullopt;
  bool ordered = false;
  std::string name = "job";
  std::optional<std::string> json = std::nullopt;
  std::optional<std::string> bytes = std::nullopt;
};

// A row of mq_poll. Without an id nothing was ready, and wait_time says for how long.
struct Polled {
  std::optional<Id> id;
  std::optional<bool> is_committed;
  std::optional<std::string> name, json, bytes;
  std::optional<Micros> retry_backoff, wait_time;
};

struct Checkpoint {
  Micros duration = Micros(0);
  std::optional<std::string> json = std::nullopt;
  std::optional<std::string> bytes = std::nullopt;
  int extra_retries = 0;
};

Id insert(Session& session, const Job& job);
std::vector<Polled> poll(Session& session, const std::optional<Names>& channel_names, int batch_size);
void remove(Session& session, const Id& id);
void remove(Session& session, const Ids& ids);
void keep_alive(Session& session, const Id& id, Micros duration);
void checkpoint(Session& session, const Id& id, const Checkpoint& checkpoint);
void commit(Session& session, const Ids& ids);
void clear(Session& session, const Names& channel_names);
void clear_all(Session& session);
bool exists(Session& session, const Id& id);
void listen(Session& session, const std::optional<Names>& channel_names);
// As the original's test suite does, or with DELETE in place of TRUNCATE.
void clean_up(Session& session, bool truncates = true);

// A row of mq_receive.
struct Received {
  Id id;
  std::string name;
  std::optional<std::string> json;
  int attempt;
  std::int64_t lease;
};
std::vector<Received> receive(Session& session, const std::optional<Names>& channel_names, int batch_size, Micros lease,
                              Micros wait);
// Each returns the ids of those that were still the caller's.
Ids ack(Session& session, const Ids& ids, std::int64_t lease);
Ids nack(Session& session, const Ids& ids, std::int64_t lease, const std::string& error, Micros retry_in);
Ids extend(Session& session, const Ids& ids, std::int64_t lease, Micros by);

// The statements themselves, with the types that are bound, and what mq_poll's rows consist of.
struct Statement {
  std::string_view sql;
  std::vector<Type> types;
};
std::vector<Statement> statements();
std::vector<Statement> clearing_statements();  // which the first version of the original did not have
Names poll_columns();
std::vector<Statement> receiving_statements();
Names delivery_columns();  // of the first of those

}  // namespace client
