// Sessions: the transactions that batches live in, of a background worker and of mq_run.
#pragma once

#include <optional>
#include <vector>

#include "postgres.hpp"

extern "C" {
#include "utils/resowner.h"
#include "utils/snapshot.h"
}

#include "../ports.hpp"
#include "extension.hpp"
#include "session_state.hpp"
#include "spi.hpp"

namespace mq {

// Held while a batch's transaction is open: no row that was visible to one of its claims is cleaned up meanwhile, so
// nothing else can stand where that row did, even if somebody has deleted it since. Settling removes payloads, which
// are not locked, by where the claim has found them.
class HeldSnapshot {
 public:
  void take();
  void release();                         // before the commit
  void forget() { snapshot_ = nullptr; }  // a rollback has released it

 private:
  Snapshot snapshot_ = nullptr;
  ResourceOwner owner_ = nullptr;
};

// Savepoints are the same for both. They nest.
class Session : public Transaction {
 public:
  void set_savepoint() override;
  void release_savepoint() override;
  void rollback_to_savepoint() override;
  // Nothing is claimed in this transaction; what runs in it may commit by itself.
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

  std::vector<Outer> outer_;  // by nest level, of the savepoints that are set; what is beyond is of old ones
};

// Savepoints in a transaction that is not ours.
class SavepointOnly : public Session {
 public:
  void begin() override {}
  void commit() override {}
  void rollback() override {}
};

// READ COMMITTED and read-write, whatever the defaults of the role or the database are: a claim has to see
// what was committed a moment ago. Between transactions the session is cleaned of what handlers left in it.
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

// Inside CALL mq_run: commits where the caller's context allows it, and is READ COMMITTED there; else everything is the
// caller's transaction.
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
