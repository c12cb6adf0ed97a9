// Sessions: the transactions in which batches run, of a worker (WorkerSession) and of mq_run
// (CallSession). worker/process.cpp and worker/mq_run.cpp own one each.
#pragma once

#include <optional>
#include <vector>

#include "pg/postgres.hpp"

extern "C" {
#include "utils/resowner.h"
#include "utils/snapshot.h"
}

#include "pg/extension.hpp"
#include "pg/session_state.hpp"
#include "pg/statement.hpp"
#include "pg/transaction.hpp"

namespace mq {

// A snapshot that is registered while a batch's transaction is open. Meanwhile the server removes
// no row that one of the batch's claims saw, even if another session has deleted it since. So no
// other row can stand in its place on the page. Settling relies on that: it finds payloads, which
// are not locked, by the ctid that the claim has read.
class HeldSnapshot {
 public:
  void take();
  void release();                         // before the commit
  void forget() { snapshot_ = nullptr; }  // after a rollback, which has released it

 private:
  Snapshot snapshot_ = nullptr;
  ResourceOwner owner_ = nullptr;
};

// Both have savepoints in common, which nest.
class Session : public Transaction {
 public:
  void set_savepoint() override;
  bool release_savepoint() override;
  void rollback_to_savepoint() override;
  // For a transaction that claims nothing, and in which code that runs may commit.
  void release_snapshot() { snapshot_.release(); }

 protected:
  std::optional<SpiConnection> spi_;
  HeldSnapshot snapshot_;

 private:
  struct Outer {
    MemoryContext context;
    ResourceOwner owner;
  };
  void restore_outer();

  std::vector<Outer> outer_;  // by nest level; entries beyond the savepoints that are set are old
};

// Savepoints in a transaction that the caller ends.
class SavepointOnly : public Session {
 public:
  void begin() override {}
  void commit() override {}
  void rollback() override {}
};

// A worker's transactions. They are READ COMMITTED and read-write, whatever the defaults of the
// role or the database are: a claim has to see what was committed a moment ago. Between
// transactions the session is cleaned of what handlers left in it. begin() throws 55000 if that
// failed.
class WorkerSession : public Session {
 public:
  void begin() override;
  void commit() override;
  void rollback() override;
  void check_deferred() override;

 private:
  bool open_ = false;
  SessionState state_;
};

// The transactions of CALL mq_run. Where the caller's context allows it (`atomic` is false) it
// commits, and is READ COMMITTED. Elsewhere everything belongs to the caller's transaction.
class CallSession : public Session {
 public:
  explicit CallSession(bool atomic) : atomic_(atomic) {}
  ~CallSession() override;
  CallSession(const CallSession&) = delete;
  CallSession& operator=(const CallSession&) = delete;
  void begin() override;
  void commit() override;
  void rollback() override;
  void check_deferred() override;

 private:
  const bool atomic_;
  bool isolation_changed_ = false;
};

}  // namespace mq
