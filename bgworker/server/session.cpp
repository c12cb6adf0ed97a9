#include "session.hpp"

#include "fence.hpp"

extern "C" {
#include "utils/resowner.h"
}

namespace mq {

namespace {

// Of the savepoint that is set; there is never more than one.
MemoryContext outer_context = nullptr;
ResourceOwner outer_owner = nullptr;

}  // namespace

void Session::set_savepoint() {
  fence::call([] {
    outer_context = CurrentMemoryContext;
    outer_owner = CurrentResourceOwner;
    BeginInternalSubTransaction(nullptr);
    MemoryContextSwitchTo(outer_context);
  });
}

void Session::release_savepoint() {
  fence::call([] {
    ReleaseCurrentSubTransaction();
    MemoryContextSwitchTo(outer_context);
    CurrentResourceOwner = outer_owner;
  });
}

void Session::rollback_to_savepoint() {
  fence::call([] {
    RollbackAndReleaseCurrentSubTransaction();
    MemoryContextSwitchTo(outer_context);
    CurrentResourceOwner = outer_owner;
  });
}

void WorkerSession::begin() {
  fence::call([] {
    SetCurrentStatementStartTimestamp();
    StartTransactionCommand();
    XactIsoLevel = XACT_READ_COMMITTED;
    XactReadOnly = false;
    XactDeferrable = false;
  });
  open_ = true;
  spi_.emplace();
}

void WorkerSession::commit() {
  if (spi_) spi_->finish();
  spi_.reset();
  fence::call([] { CommitTransactionCommand(); });
  open_ = false;
}

void WorkerSession::rollback() {
  if (spi_) spi_->forget();
  spi_.reset();
  if (!open_) return;
  open_ = false;
  fence::call([] { AbortCurrentTransaction(); });
}

void CallSession::begin() {
  spi_.emplace(!atomic_);
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
