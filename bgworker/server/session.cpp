#include "session.hpp"

#include "fence.hpp"
#include "row_locks.hpp"

extern "C" {
#include "utils/snapmgr.h"
}

namespace mq {

void HeldSnapshot::take() {
  fence::call([this] {
    snapshot_ = RegisterSnapshot(GetTransactionSnapshot());
    owner_ = CurrentResourceOwner;
  });
}

void HeldSnapshot::release() {
  if (snapshot_ == nullptr) return;
  fence::call([this] { UnregisterSnapshotFromOwner(snapshot_, owner_); });
  snapshot_ = nullptr;
}

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
  snapshot_.take();
  spi_.emplace();
}

void WorkerSession::commit() {
  if (spi_) spi_->finish();
  spi_.reset();
  snapshot_.release();
  state_.before_end();
  fence::call([] { CommitTransactionCommand(); }, fence::Texts::kKept);
  open_ = false;
  state_.clean();
}

void WorkerSession::rollback() {
  if (spi_) spi_->forget();
  spi_.reset();
  snapshot_.forget();
  if (!open_) return;
  open_ = false;
  state_.before_end();
  fence::call([] { AbortCurrentTransaction(); });
  state_.clean();
}

void CallSession::begin() {
  spi_.emplace(!atomic_);
  if (!atomic_ && IsolationUsesXactSnapshot()) {
    isolation_changed_ = true;
    fence::call([] {
      if (FirstSnapshotSet) SPI_commit();
      XactIsoLevel = XACT_READ_COMMITTED;
    });
  }
  snapshot_.take();
}

// The transaction that the last commit began is the caller's next one.
CallSession::~CallSession() {
  if (isolation_changed_ && !FirstSnapshotSet) XactIsoLevel = DefaultXactIsoLevel;
}

void CallSession::commit() {
  snapshot_.release();
  if (!atomic_) fence::call([] { SPI_commit(); });
  spi_->finish();
  spi_.reset();
}

void CallSession::rollback() {
  // After a failed SPI_commit the server has rolled back and begun again; elsewhere the error goes on to the
  // caller, whose rollback it is.
  snapshot_.forget();
  if (spi_) spi_->finish();
  spi_.reset();
}

}  // namespace mq
