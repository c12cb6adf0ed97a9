// The leased calls that run. Workers, and sessions in mq_run, enter a call
// and leave it. State::lock covers the table `leases`. It serves three purposes:
//   - A handler that says something of its message finds its call by its session's process id.
//   - enter_lease() keeps to the limit of calls on a channel name.
//   - A lease whose call is alive is told from an orphan.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/types.hpp"

namespace mq::shared {

// Leased calls of this worker or, in mq_run, of this session. A call is alive from enter_lease()
// until leave_lease(), or until its worker and its session have ended.
struct NewLease {
  std::int64_t token;
  int backend;            // the process id of the session
  std::int64_t name_key;  // channel_key() of the channel name and no arguments
  int most;               // calls on the channel name in this database at once; 0: no limit
  bool block_on_dead;
  Uuid message;  // its first message
  std::string_view channel_name;
  bool function;  // the handler is no procedure
};
int enter_lease(const NewLease& lease);  // the call's number; -1: it may not begin now
void leave_lease(int number);
// The call has failed with its mq_run: it is an aborted call. Its session goes on.
void abort_lease(int number, const Uuid& message);
// `exclusive`: no leased call of this worker's pool may begin while any other runs.
void note_exclusive(bool exclusive);
int leases_on(std::int64_t name_key);  // calls on the channel name in this database that are alive
bool lease_is_alive(std::int64_t token);
// A call runs with the lease, or is an aborted call that is still to be charged.
bool lease_has_call(std::int64_t token);
struct LeasedCallState {
  int backend;
  Oid role;
  std::int64_t token;
  TimestampTz since;
};
std::vector<LeasedCallState> leased_calls();  // those of this database that are alive
bool is_session_of_mine(int backend);         // of this worker's database and role
Oid my_role();                                // of this worker; InvalidOid: no worker
// The leased call that this session runs, if any.
struct HandledHere {
  std::int64_t token;
  bool block_on_dead;
};
std::optional<HandledHere> handled_here();
void set_handled_here(const std::optional<HandledHere>& call);  // for a call in this very process
// The number of the leased call that this process runs itself, in mq_run; -1: none.
int own_lease();
// Whether mq_cancel has cancelled a message of the call, and has committed.
bool lease_is_cancelled(int number);
// Whether the lease is of the call that this session runs.
bool is_handled_here(std::int64_t token);
// The transaction of a leased call's session is about to commit. Waits while a transaction that has cancelled
// a message of the call is open, and throws 57014 if that has committed. From then on mq_cancel takes the
// messages of a function's call for handled. Does nothing in other sessions.
void leased_call_commits();
// That transaction was rolled back after all.
void leased_call_aborts();
// How far the leased call with the token is, as leased_call_commits() has noted it.
struct LeasedCommit {
  int backend = 0;     // 0: there is no such call
  bool ended = false;  // its function's transaction commits, or has committed
  TransactionId settling = InvalidTransactionId;
};
LeasedCommit leased_commit(std::int64_t token);
// Why a session of this worker's pool was refused; empty: it was accepted.
void note_connection(const std::string& refusal);
void note_connecting(int sessions);  // how many sessions this worker is opening
int connecting();                    // how many sessions the server's other workers are opening

}  // namespace mq::shared
