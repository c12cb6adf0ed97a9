#include "pg/session_state.hpp"

#include "pg/guard.hpp"

extern "C" {
#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "storage/lock.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
}

namespace mq {

namespace {

bool called = false;  // since the session was cleaned; set by note_call(), cleared by clean()

}  // namespace

void SessionState::note_call() {
  called = true;
}

void SessionState::before_end() {
  temporary_ = temporary_ || (called && (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE) != 0);
}

void SessionState::clean() {
  if (!called && !dirty_) return;
  called = false;
  dirty_ = true;
  bool in_transaction = false;
  try {
    // Where there is nothing to do each of these costs less than to ask. DISCARD ALL does the same,
    // and ends LISTEN and resets settings, which a worker need not.
    guard::call([] {
      LockReleaseAll(USER_LOCKMETHOD, true);
      PortalHashTableDeleteAll();
      DropAllPreparedStatements();
      ResetSequenceCaches();
    });
    if (temporary_) {
      guard::call([] { StartTransactionCommand(); });
      in_transaction = true;
      guard::call([] {
        PushActiveSnapshot(GetTransactionSnapshot());  // to remove the catalogs' out-of-line values
        ResetTempTableNamespace();
        PopActiveSnapshot();
        CommitTransactionCommand();
      });
      temporary_ = false;
    }
    dirty_ = false;
  } catch (const Error& error) {
    if (in_transaction) guard::call([] { AbortCurrentTransaction(); });
    const char* text = error.message.c_str();
    const char* state = error.sqlstate.c_str();
    guard::call([&] {
      ereport(LOG, (errmsg("mq worker: what handlers left in its session could not be cleaned: %s (SQLSTATE %s)", text,
                           state)));
    });
  }
}

bool SessionState::is_clean() {
  if (dirty_) clean();
  return !dirty_;
}

}  // namespace mq
