// Identity: as which role handlers run. No user may have a handler run as a role that the user
// could not act as. Registration, workers and mq_run call it. The only state is the scope's.
#pragma once

#include "pg/postgres.hpp"

namespace mq {

// Whether `role` may SET ROLE to `other`. A superuser always may.
bool may_become(Oid role, Oid other);

// The owner of a handler's code.
//   kTrusted  its owner may act as the role that it runs as
//   kOther    its owner may not, and has it run with the owner's rights (SECURITY DEFINER)
enum class HandlerOwner { kTrusted, kOther };

// Throws 42501 if a function may not be called as `run_as`:
//   1. `run_as` has no EXECUTE on it.
//   2. It runs with the rights of `run_as`, but its owner is not a member of that role. The owner
//      can replace the body at any time, and so would act as `run_as`.
//   3. It is leased, and `run_as` has no USAGE on its schema: it is called by name.
//   4. It is leased and kOther: nothing restricts the session that it would be called in.
HandlerOwner check_handler_rights(Oid function, Oid run_as, bool leased);
// Throws 42501 if `run_as` may not use the schema of the function.
void check_schema_rights(Oid function, Oid run_as);

// Lives while a handler runs. The session's user may have more rights than the role whose code
// runs: after SET ROLE, or in and around SECURITY DEFINER functions. The handler must not get at
// those rights. So the server then refuses RESET ROLE, and whatever would run later on behalf of
// the session (deferred triggers, cursors WITH HOLD, temporary tables).
class HandlerScope {
 public:
  explicit HandlerScope(HandlerOwner owner);
  ~HandlerScope();
  HandlerScope(const HandlerScope&) = delete;
  HandlerScope& operator=(const HandlerScope&) = delete;

 private:
  Oid user_ = InvalidOid;
  int context_ = 0;
};

// Called in a worker once it is connected. Settings of its role or database must not make handlers
// run as another role, nor end the process.
void pin_worker_settings();

}  // namespace mq
