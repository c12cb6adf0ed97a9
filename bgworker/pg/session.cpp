#include "pg/session.hpp"

#include "pg/guard.hpp"
#include "pg/row_locks.hpp"

extern "C" {
#include "commands/trigger.h"
#include "nodes/parsenodes.h"
#include "utils/snapmgr.h"
}

namespace mq {

void HeldSnapshot::take() {
  guard::call([this] {
    snapshot_ = RegisterSnapshot(GetTransactionSnapshot());
    owner_ = CurrentResourceOwner;
  });
}

void HeldSnapshot::release() {
  if (snapshot_ == nullptr) return;
  guard::call([this] { UnregisterSnapshotFromOwner(snapshot_, owner_); });
  snapshot_ = nullptr;
}

void Session::set_savepoint() {
  const auto level = static_cast<std::size_t>(GetCurrentTransactionNestLevel());
  if (outer_.size() <= level) outer_.resize(level + 1);
  outer_[level] = {CurrentMemoryContext, CurrentResourceOwner};
  const MemoryContext context = CurrentMemoryContext;
  guard::call([&] {
    BeginInternalSubTransaction(nullptr);
    MemoryContextSwitchTo(context);
  });
}

// Called after the end of a savepoint.
void Session::restore_outer() {
  const Outer& outer = outer_[static_cast<std::size_t>(GetCurrentTransactionNestLevel())];
  MemoryContextSwitchTo(outer.context);
  CurrentResourceOwner = outer.owner;
}

bool Session::release_savepoint() {
  const bool wrote = TransactionIdIsValid(GetCurrentTransactionIdIfAny());
  guard::call([] { ReleaseCurrentSubTransaction(); });
  restore_outer();
  return wrote;
}

void Session::rollback_to_savepoint() {
  guard::call([] { RollbackAndReleaseCurrentSubTransaction(); });
  restore_outer();
}

namespace {

// Runs what is deferred. What is deferred after this runs at the next call, or at the commit.
void run_deferred() {
  guard::call([] {
    ConstraintsSetStmt* set = makeNode(ConstraintsSetStmt);
    set->deferred = false;
    AfterTriggerSetState(set);
    set->deferred = true;
    AfterTriggerSetState(set);
  });
}

}  // namespace

void WorkerSession::begin() {
  if (!state_.is_clean()) throw Error("55000", "what handlers left in the session of the worker could not be cleaned");
  guard::call([] {
    SetCurrentStatementStartTimestamp();
    StartTransactionCommand();
    XactIsoLevel = XACT_READ_COMMITTED;
    XactReadOnly = false;
    XactDeferrable = false;
  });
  row_locks::transaction_begins(GetCurrentTimestamp());
  open_ = true;
  snapshot_.take();
  spi_.emplace();
}

void WorkerSession::commit() {
  if (spi_) spi_->finish();
  spi_.reset();
  snapshot_.release();
  state_.before_end();
  guard::call([] { CommitTransactionCommand(); }, guard::Texts::kKept);
  open_ = false;
  state_.clean();
}

void WorkerSession::check_deferred() {
  run_deferred();
}

void WorkerSession::rollback() {
  if (spi_) spi_->forget();
  spi_.reset();
  snapshot_.forget();
  if (!open_) return;
  open_ = false;
  state_.before_end();
  // An error may come between a savepoint and its end: AbortCurrentTransaction() would roll back to it, no further.
  guard::call([] { AbortOutOfAnyTransaction(); });
  state_.clean();
}

void CallSession::begin() {
  spi_.emplace(!atomic_);
  if (!atomic_ && IsolationUsesXactSnapshot()) {
    isolation_changed_ = true;
    guard::call([] {
      if (FirstSnapshotSet) SPI_commit();
      XactIsoLevel = XACT_READ_COMMITTED;
    });
  }
  snapshot_.take();
}

// The last commit has begun the caller's next transaction, so that gets the default level.
CallSession::~CallSession() {
  if (isolation_changed_ && !FirstSnapshotSet) XactIsoLevel = DefaultXactIsoLevel;
}

void CallSession::commit() {
  snapshot_.release();
  if (!atomic_) guard::call([] { SPI_commit(); });
  spi_->finish();
  spi_.reset();
}

void CallSession::check_deferred() {
  if (!atomic_) run_deferred();
}

void CallSession::rollback() {
  // After a failed SPI_commit() the server has rolled back and begun a transaction. In a transaction block
  // the error goes on to the caller, which rolls back.
  if (!atomic_ && spi_ && !IsSubTransaction()) guard::call([] { SPI_rollback(); });
  snapshot_.forget();
  if (spi_) spi_->finish();
  spi_.reset();
}

}  // namespace mq
