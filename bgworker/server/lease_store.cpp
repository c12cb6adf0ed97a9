#include "lease_store.hpp"
#include "connects.hpp"

#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include <fmt/core.h>

#include "../channel_key.hpp"
#include "../pq_session.hpp"
#include "enabled.hpp"
#include "extension.hpp"
#include "fence.hpp"
#include "host.hpp"
#include "inflight.hpp"
#include "refused.hpp"
#include "sequences.hpp"
#include "settings.h"
#include "shared.hpp"
#include "spi.hpp"

extern "C" {
#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "postmaster/postmaster.h"
#include "storage/fd.h"
#include "storage/proc.h"
#include "utils/pidfile.h"
}

namespace mq {

namespace {

// Counts in the server's budget of file descriptors.
class ServerSession : public PqSession {
 public:
  using PqSession::PqSession;
  ~ServerSession() override { ReleaseExternalFD(); }
  ServerSession(const ServerSession&) = delete;
  ServerSession& operator=(const ServerSession&) = delete;
};

// Before whatever the role or the database have set: limits are the worker's business, and what a handler runs under is
// what it would run under in transactional mode. A session whose worker is gone ends itself.
constexpr const char* kOptions =
    "-c role=none -c exit_on_error=off -c statement_timeout=0 -c lock_timeout=0"
    " -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0"
#if PG_VERSION_NUM >= 170000
    " -c transaction_timeout=0"
#endif
    " -c default_transaction_isolation=read\\ committed -c default_transaction_read_only=off"
    " -c default_transaction_deferrable=off -c client_connection_check_interval=2s -c client_min_messages=error";

// The first of unix_socket_directories; this machine where there is none.
std::string socket_host() {
  std::string directories = Unix_socket_directories != nullptr ? Unix_socket_directories : "";
  directories = directories.substr(0, directories.find(','));
  const auto is_padding = [](char c) { return c == ' ' || c == '"' || c == '\''; };
  while (!directories.empty() && is_padding(directories.front())) directories.erase(0, 1);
  while (!directories.empty() && is_padding(directories.back())) directories.pop_back();
  return directories.empty() ? "localhost" : directories;
}

constexpr int kShare = 4;  // one in so many connections

int spared() {
#if PG_VERSION_NUM >= 160000
  return SuperuserReservedConnections + ReservedConnections + MaxConnections / kShare;
#else
  return ReservedBackends + MaxConnections / kShare;
#endif
}

bool are_free(int connections) {
  return fence::call([&] {
#if PG_VERSION_NUM >= 160000
    int found = 0;
    return HaveNFreeProcs(connections, &found);
#else
    return HaveNFreeProcs(connections);
#endif
  });
}

// The line of the postmaster's lock file that says so, in the data directory. A smart shutdown tells nobody else.
bool server_is_stopping() {
  std::FILE* file = std::fopen("postmaster.pid", "re");
  if (file == nullptr) return false;
  char line[MAXPGPATH];
  bool stopping = false;
  for (int i = 1; std::fgets(line, sizeof line, file) != nullptr; ++i)
    if (i == LOCK_FILE_LINE_PM_STATUS)
      stopping = std::strncmp(line, PM_STATUS_STOPPING, std::strlen(PM_STATUS_STOPPING)) == 0;
  std::fclose(file);
  return stopping;
}

}  // namespace

bool SqlLeaseStore::is_stopping() {
  const TimestampTz now = GetCurrentTimestamp();
  if (!stopping_ && (now - looked_at_ >= kSecond || now < looked_at_)) {
    looked_at_ = now;
    stopping_ = server_is_stopping();
  }
  return stopping_;
}

void SqlLeaseStore::note_connecting(int sessions) {
  shared::note_connecting(sessions);
}

void SqlLeaseStore::put_off(const Uuid& message, std::string_view channel_name, const Error& why, Micros until) {
  shared::note_unsettled(message, channel_name, why.message, until);
}

void SqlLeaseStore::log(const char* what, const Error& error) {
  const std::optional<std::string> line = log_.line(error, ServerClock().steady());
  if (!line) return;
  const char* text = line->c_str();
  fence::call([&] { ereport(LOG, (errmsg_internal("%s: %s", what, text))); });
}

void SqlLeaseStore::warn(const Error& error) {
  log("mq worker", error);
}

int SqlLeaseStore::most_sessions() {
  return mq_leased_sessions;
}

// Others must be able to log in, whatever the role of the handlers is: of the server's connections those that are
// reserved stay free, and a share of the rest.
std::unique_ptr<HandlerSession> SqlLeaseStore::open(int connecting) {
  const int free = spared() + connecting + shared::connecting() + 1;
  if (!are_free(free))
    throw Error("53300",
                fmt::format("no room for another session: of max_connections = {} the last {} are left to others",
                            MaxConnections, spared()));
  // What the server is sure to refuse is not tried, which would fill its log. With one that is on its way it may be
  // counted already: that is waited for.
  if (const std::string obstacle = session_obstacle(MyDatabaseId, GetSessionUserId(), connecting); !obstacle.empty()) {
    if (connecting > 0) return nullptr;
    throw Error("53300", obstacle);
  }
  SessionParameters parameters;
  const char* database = fence::call([] { return get_database_name(MyDatabaseId); });
  const char* role = fence::call([] { return GetUserNameFromId(GetSessionUserId(), false); });
  parameters.conninfo = mq_leased_conninfo;
  parameters.socket_host = socket_host();
  parameters.socket_port = std::to_string(PostPortNumber);
  parameters.database = database != nullptr ? database : "";
  parameters.role = role;
  parameters.encoding = GetDatabaseEncodingName();
  parameters.options = kOptions;
  if (!fence::call([] { return AcquireExternalFD(); })) return nullptr;
  return std::make_unique<ServerSession>(parameters);
}

bool SqlLeaseStore::is_ours(int backend) {
  return shared::is_session_of_mine(backend);
}

// Signals, as pg_cancel_backend and pg_terminate_backend send them: libpq before 17 has no cancel that does not block.
// The role is the same as the worker's, so this is nothing that it could not do itself.
void SqlLeaseStore::cancel(int backend) {
  if (is_ours(backend)) (void)kill(backend, SIGINT);
}

void SqlLeaseStore::terminate(int backend) {
  if (is_ours(backend)) (void)kill(backend, SIGTERM);
}

void SqlLeaseStore::note_connection(const std::optional<Error>& refusal) {
  shared::note_connection(refusal ? refusal->message : std::string());
  if (refusal) log("mq: no connection for leased handlers", *refusal);
}

int SqlLeaseStore::running_on(std::string_view channel_name) {
  return shared::leases_on(channel_key(channel_name, {}));
}

bool SqlLeaseStore::was_told(int number) {
  return inflight::was_told(number);
}

int SqlLeaseStore::due(std::string_view channel_name, Micros now, int limit) {
  return source_.due(channel_name, now, limit);
}

int SqlLeaseStore::enter(const Entry& entry) {
  const std::int64_t name_key = channel_key(entry.first.channel_name, {});
  const int number = shared::enter_lease(
      {entry.token, entry.backend, name_key, entry.handler.max_workers, entry.handler.block_on_dead});
  if (number < 0) return -1;
  shared::note_call(entry.first.channel_name, entry.first.id);
  inflight::set_leased(number, {MyDatabaseId, entry.company + 1, entry.first.id, entry.token, shared::my_role()});
  return number;
}

void SqlLeaseStore::leave(int number) {
  inflight::clear_leased(number);
  shared::leave_lease(number);
}

void SqlLeaseStore::note_alone(bool alone) {
  shared::note_alone(alone);
}

std::int64_t SqlLeaseStore::new_token() {
  static Statement in_use("SELECT 1 FROM $S.mq_msgs m WHERE m.lease = $1 AND m.lease > 0 LIMIT 1", {INT8OID});
  const OwnerScope scope;
  for (;;) {
    const std::int64_t token = sequences::next_place();
    // Somebody has set the sequence back.
    if (!shared::lease_is_alive(token) && in_use.run({Int64GetDatum(token)}).empty()) return token;
    sequences::mend_places(token);
  }
}

void SqlLeaseStore::lease(const std::vector<const Claimed*>& messages, std::int64_t token, Micros until) {
  static Statement update(
      "UPDATE $S.mq_msgs m SET attempt_at = $2, attempts = m.attempts - 1, attempt = m.attempt + 1, lease = $3"
      " WHERE m.id = ANY ($1)",
      {UUIDARRAYOID, TIMESTAMPTZOID, INT8OID});
  const OwnerScope scope;
  ArrayParam ids(UUIDOID, messages.size());
  for (const Claimed* message : messages) ids.add(uuid_datum(message->id));
  // All are locked, so nobody else has removed any.
  if (update.run({ids.datum(), TimestampTzGetDatum(until), Int64GetDatum(token)}).size() < messages.size())
    throw refused("mq_msgs", "being changed");
}

// What is locked is passed over: by the handler itself, which has said something of its message.
void SqlLeaseStore::renew(const std::vector<std::int64_t>& tokens, Micros until) {
  static Statement update(
      "WITH held AS MATERIALIZED (SELECT m.id FROM $S.mq_msgs m WHERE m.lease = ANY ($1) AND m.lease > 0"
      "                             AND m.attempt_at < $2 FOR NO KEY UPDATE SKIP LOCKED)"
      " UPDATE $S.mq_msgs m SET attempt_at = $2 FROM held WHERE m.id = held.id",
      {INT8ARRAYOID, TIMESTAMPTZOID});
  const OwnerScope scope;
  ArrayParam array(INT8OID, tokens.size());
  for (const std::int64_t token : tokens) array.add(Int64GetDatum(token));
  update.run({array.datum(), TimestampTzGetDatum(until)});
}

bool SqlLeaseStore::reclaim(std::int64_t token, Batch& batch) {
  return source_.leased(token, batch);
}

std::vector<std::int64_t> SqlLeaseStore::orphans(std::size_t limit) {
  static Statement leases("SELECT DISTINCT m.lease FROM $S.mq_msgs m WHERE m.lease > 0 ORDER BY m.lease LIMIT $1",
                          {INT8OID});
  std::vector<std::int64_t> tokens;
  if (!shared::available()) return tokens;  // nobody can tell; a lease ends by itself
  if (!enabled::here()) return tokens;
  const OwnerScope scope;
  const Rows rows = leases.run({Int64GetDatum(static_cast<std::int64_t>(limit))});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int64_t token = DatumGetInt64(rows.get(i, 1));
    if (!shared::lease_is_alive(token) && !shared::lease_is_lost(token)) tokens.push_back(token);
  }
  return tokens;
}

LeasedCall SqlLeaseStore::call_of(const Handler& handler, const std::vector<const Claimed*>& messages) {
  return caller_.leased_call(handler, messages);
}

}  // namespace mq

extern "C" bool mq_conninfo_is_valid(const char* conninfo, char* message, size_t size) {
  // Called by the server's configuration code, which no error may pass: not through the fence.
  try {
    const std::string error = mq::conninfo_error(conninfo);
    strlcpy(message, error.c_str(), size);
    return error.empty();
  } catch (...) {
    strlcpy(message, "out of memory", size);
    return false;
  }
}
