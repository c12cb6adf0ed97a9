#include "leased/lease_store.hpp"
#include "pg/connects.hpp"
#include "pg/format.hpp"

#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "handlers/results.hpp"
#include "leased/pq_session.hpp"
#include "pg/clock.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/locks.hpp"
#include "pg/refused_rows.hpp"
#include "pg/row_locks.hpp"
#include "pg/sequences.hpp"
#include "pg/settings.h"
#include "pg/statement.hpp"
#include "pg/versions.hpp"
#include "queue/channel_slots.hpp"
#include "queue/due.hpp"
#include "queue/enabled.hpp"
#include "queue/find.hpp"
#include "queue/lease.hpp"
#include "queue/settle.hpp"
#include "shmem/activity.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/failing.hpp"
#include "shmem/in_flight.hpp"
#include "shmem/leased_calls.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "postmaster/postmaster.h"
#include "storage/fd.h"
#include "storage/proc.h"
#include "utils/fmgrprotos.h"
#include "utils/pidfile.h"
}

namespace mq {

namespace {

// Its socket counts towards the file descriptors that the server may use: open() has acquired one.
class ServerSession : public PqSession {
 public:
  using PqSession::PqSession;
  ~ServerSession() override { ReleaseExternalFD(); }
  ServerSession(const ServerSession&) = delete;
  ServerSession& operator=(const ServerSession&) = delete;
};

// These take precedence over settings of the role or the database. The worker enforces time limits
// itself, and a handler runs with the transaction defaults that it has in transactional mode.
// client_connection_check_interval ends a session whose worker is gone.
constexpr const char* kOptions =
    "-c role=none -c exit_on_error=off -c statement_timeout=0 -c lock_timeout=0"
    " -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0" MQ_NO_TRANSACTION_TIMEOUT
    " -c default_transaction_isolation=read\\ committed -c default_transaction_read_only=off"
    " -c default_transaction_deferrable=off -c client_connection_check_interval=2s -c client_min_messages=error";

// The first of unix_socket_directories; localhost if there is none.
std::string socket_host() {
  std::string directories = Unix_socket_directories != nullptr ? Unix_socket_directories : "";
  directories = directories.substr(0, directories.find(','));
  const auto is_padding = [](char c) { return c == ' ' || c == '"' || c == '\''; };
  while (!directories.empty() && is_padding(directories.front())) directories.erase(0, 1);
  while (!directories.empty() && is_padding(directories.back())) directories.pop_back();
  return directories.empty() ? "localhost" : directories;
}

constexpr int kShare = 4;  // one in so many connections is left to others

// How many connections are left to others than leased handlers.
int spared() {
  return server::reserved_connections() + MaxConnections / kShare;
}

bool are_free(int connections) {
  return guard::call([&] { return server::have_free_processes(connections); });
}

// Reads the status line of postmaster.pid, in the data directory. A smart shutdown tells workers
// nothing else.
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
  guard::call([&] { ereport(LOG, (errmsg_internal("%s: %s", what, text))); });
}

void SqlLeaseStore::warn(const Error& error) {
  log("mq worker", error);
}

bool SqlLeaseStore::works() {
  return enabled::hold();
}

Claim SqlLeaseStore::claim(const std::vector<Source>& sources, int limit) {
  return claimer_.claim(sources, limit, false);
}

void SqlLeaseStore::find(std::span<const Uuid> ids, Batch& batch) {
  std::vector<int> crashes;
  find_named(ids, batch, crashes);
}

void SqlLeaseStore::settle(const Settlement& settlement) {
  mq::settle(settlement);
}

bool SqlLeaseStore::was_held(const Error& error) {
  return row_locks::was_held(error);
}

int SqlLeaseStore::most_sessions() {
  return mq_leased_sessions;
}

// Other users must be able to log in, whatever the role of the handlers is. So the reserved
// connections stay free, and one in kShare of all.
std::unique_ptr<HandlerSession> SqlLeaseStore::open(int connecting) {
  const int free = spared() + connecting + shared::connecting() + 1;
  if (!are_free(free))
    throw Error("53300",
                mq::format("no room for another session: of max_connections = {} the last {} are left to others",
                           MaxConnections, spared()));
  // A connection that the server is sure to refuse is not tried: that would fill its log. The
  // connections that this worker is opening may be counted twice in this; so no error is thrown
  // while there are some.
  if (const std::string obstacle = session_obstacle(MyDatabaseId, GetSessionUserId(), connecting); !obstacle.empty()) {
    if (connecting > 0) return nullptr;
    throw Error("53300", obstacle);
  }
  SessionParameters parameters;
  const char* database = guard::call([] { return get_database_name(MyDatabaseId); });
  const char* role = guard::call([] { return GetUserNameFromId(GetSessionUserId(), false); });
  parameters.conninfo = mq_leased_conninfo;
  parameters.socket_host = socket_host();
  parameters.socket_port = std::to_string(PostPortNumber);
  parameters.database = database != nullptr ? database : "";
  parameters.role = role;
  parameters.encoding = GetDatabaseEncodingName();
  parameters.options = kOptions;
  if (!guard::call([] { return AcquireExternalFD(); })) return nullptr;
  return std::make_unique<ServerSession>(parameters);
}

bool SqlLeaseStore::is_ours(int backend) {
  return shared::is_session_of_mine(backend);
}

// Sends the signals of pg_cancel_backend and pg_terminate_backend: libpq before 17 has no cancel
// that does not block. The session has the worker's role, which may call those functions anyway.
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

bool SqlLeaseStore::is_cancelled(int number) {
  return shared::lease_is_cancelled(number);
}

bool SqlLeaseStore::was_told(int number) {
  return in_flight::was_told(number);
}

int SqlLeaseStore::due(std::string_view channel_name, Micros now, int limit) {
  return count_due(channel_name, now, limit);
}

int SqlLeaseStore::enter_call(shared::NewLease lease) {
  if (lease.most <= 0) return shared::enter_lease(lease);
  const locks::SlotsLock alone(lease.name_key);
  lease.most = left_for_leased_calls(lease.channel_name, lease.most);
  return lease.most > 0 ? shared::enter_lease(lease) : -1;
}

int SqlLeaseStore::enter(const Entry& entry) {
  const std::int64_t name_key = channel_key(entry.first.channel_name, {});
  const int number =
      enter_call({entry.token, entry.backend, name_key, entry.handler.max_workers, entry.handler.block_on_dead,
                  entry.first.id, entry.first.channel_name, !entry.handler.procedure});
  if (number < 0) return -1;
  shared::note_call(entry.first.channel_name, entry.first.id);
  in_flight::set_leased(number, {MyDatabaseId, entry.concurrency + 1, entry.first.id, entry.token, shared::my_role()});
  return number;
}

void SqlLeaseStore::leave(int number) {
  in_flight::clear_leased(number);
  shared::leave_lease(number);
}

void SqlLeaseStore::note_exclusive(bool exclusive) {
  shared::note_exclusive(exclusive);
}

std::int64_t SqlLeaseStore::new_token() {
  static Statement in_use("SELECT 1 FROM $S.mq_msgs m WHERE m.lease = $1 AND m.lease > 0 LIMIT 1", {INT8OID});
  const OwnerScope scope;
  for (;;) {
    const std::int64_t token = sequences::next_seq();
    // The token is in use, so the sequence was set back.
    if (!shared::lease_is_alive(token) && in_use.run({Int64GetDatum(token)}).empty()) return token;
    sequences::mend_numbers(token);
  }
}

void SqlLeaseStore::lease(const std::vector<const Claimed*>& messages, std::int64_t token, Micros until) {
  const OwnerScope scope;
  std::vector<NewLease> leases;
  for (const Claimed* message : messages) leases.push_back({message, until, std::nullopt});
  mq::lease(leases, token);
}

// Passes over locked rows: a handler that has called mq_snooze or the like locks its message.
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
  return find_leased(token, batch);
}

std::vector<std::int64_t> SqlLeaseStore::orphans(std::size_t limit) {
  static Statement leases("SELECT DISTINCT m.lease FROM $S.mq_msgs m WHERE m.lease > 0 ORDER BY m.lease LIMIT $1",
                          {INT8OID});
  std::vector<std::int64_t> tokens;
  // Without shared memory it is unknown which leases are alive; a lease ends at its attempt_at.
  if (!shared::available()) return tokens;
  if (!enabled::here()) return tokens;
  const OwnerScope scope;
  const Rows rows = leases.run({Int64GetDatum(static_cast<std::int64_t>(limit))});
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int64_t token = DatumGetInt64(rows.get(i, 1));
    if (!shared::lease_has_call(token)) tokens.push_back(token);
  }
  return tokens;
}

std::vector<const void*> SqlLeaseStore::results_of(const std::string& result, Shape shape, std::size_t messages) {
  const char* text = result.c_str();
  const Datum json = guard::call([&] { return result_to_keep(DirectFunctionCall1(jsonb_in, CStringGetDatum(text))); });
  return mq::results_of(json, shape, messages);
}

LeasedCall SqlLeaseStore::call_of(const Handler& handler, const std::vector<const Claimed*>& messages) {
  return caller_.leased_call(handler, messages);
}

}  // namespace mq

extern "C" bool mq_conninfo_is_valid(const char* conninfo, char* message, size_t size) {
  // The server's configuration code calls this, and no error may pass it: so without the pg guard.
  try {
    const std::string error = mq::conninfo_error(conninfo);
    strlcpy(message, error.c_str(), size);
    return error.empty();
  } catch (...) {
    strlcpy(message, "out of memory", size);
    return false;
  }
}
