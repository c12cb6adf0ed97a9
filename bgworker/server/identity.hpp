// Identity: as whom handlers run, and that nobody runs one as a role that he could not act as himself.
#pragma once

#include "postgres.hpp"

namespace mq {

// Whether `role` may SET ROLE to `other`; a superuser may always.
bool may_become(Oid role, Oid other);

// Whose code a handler is: of a superuser or a member of the role that it runs as; or of another, who has it run with
// his own rights (SECURITY DEFINER).
enum class HandlerOwner { kTrusted, kOther };

// Throws 42501 if a function may not be called as `run_as`: without EXECUTE on it; or where its owner, who can
// replace its body at any time, would so act as a role that he is not a member of. A leased one is called by its name,
// so it needs USAGE on the schema as well, and in a session that nobody restricts, so kOther is refused.
HandlerOwner check_handler_rights(Oid function, Oid run_as, bool leased);
// Throws 42501 if the role may not use the schema of the function.
void check_schema_rights(Oid function, Oid run_as);

// While a handler runs. The session's user may be more than the role whose code runs: after SET ROLE, or in and around
// SECURITY DEFINER functions. Then the handler must not get at those rights: the server refuses RESET ROLE and
// whatever would run later on behalf of the session (deferred triggers, cursors WITH HOLD, temporary tables).
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

// In a worker, once it is connected: settings of its role or database must neither have its handlers run as another
// role nor end the process.
void pin_worker_settings();

}  // namespace mq
