#include "session.hpp"

#include "fence.hpp"
#include "row_locks.hpp"

extern "C" {
#include "utils/snapmgr.h"
}

namespace mq {

void Session::set_savepoint() {
  fence::call([this] {
    outer_context_ = CurrentMemoryContext;
    outer_owner_ = CurrentResourceOwner;
    BeginInternalSubTransaction(nullptr);
    MemoryContextSwitchTo(outer_context_);
  });
}

void Session::release_savepoint() {
  fence::call([this] {
    ReleaseCurrentSubTransaction();
    MemoryContextSwitchTo(outer_context_);
    CurrentResourceOwner = outer_owner_;
  });
}

void Session::rollback_to_savepoint() {
  fence::call([this] {
    RollbackAndReleaseCurrentSubTransaction();
    MemoryContextSwitchTo(outer_context_);
    CurrentResourceOwner = outer_owner_;
  });
}

void WorkerSession::begin() {
  if (!state_.is_clean()) throw Error("55000", "what handlers left in the session of the worker could not be cleaned");
  fence::call([] {
    SetCurrentStatementStartTimestamp();
    StartTransactionCommand();
    XactIsoLevel = XACT_READ_COMMITTED;
    XactReadOnly = false;
    XactDeferrable = false;
  });
  row_locks::transaction_begins(GetCurrentTimestamp());
  open_ = true;
  spi_.emplace();
}

void WorkerSession::commit() {
  if (spi_) spi_->finish();
  spi_.reset();
  state_.before_end();
  fence::call([] { CommitTransactionCommand(); }, fence::Texts::kKept);
  open_ = false;
  state_.clean();
}

void WorkerSession::rollback() {
  if (spi_) spi_->forget();
  spi_.reset();
  if (!open_) return;
  open_ = false;
  state_.before_end();
  fence::call([] { AbortCurrentTransaction(); });
  state_.clean();
}

void CallSession::begin() {
  spi_.emplace(!atomic_);
  if (atomic_ || !IsolationUsesXactSnapshot()) return;
  isolation_changed_ = true;
  fence::call([] {
    if (FirstSnapshotSet) SPI_commit();
    XactIsoLevel = XACT_READ_COMMITTED;
  });
}

// The transaction that the last commit began is the caller's next one.
CallSession::~CallSession() {
  if (isolation_changed_ && !FirstSnapshotSet) XactIsoLevel = DefaultXactIsoLevel;
}

void CallSession::commit() {
  if (!atomic_) fence::call([] { SPI_commit(); });
  spi_->finish();
  spi_.reset();
}

void CallSession::rollback() {
  // After a failed SPI_commit the server has rolled back and begun again; elsewhere the error goes on to the
  // caller, whose rollback it is.
  if (spi_) spi_->finish();
  spi_.reset();
}

}  // namespace mq
