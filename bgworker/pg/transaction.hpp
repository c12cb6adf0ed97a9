// Transaction: what a batch and its calls need of the transaction in which they run. The worker's
// loop, dispatch, the leased executor and the sweep call it; session.hpp implements it. No state.
#pragma once

namespace mq {

// Savepoints nest.
class Transaction {
 public:
  virtual ~Transaction() = default;
  virtual void begin() = 0;
  virtual void commit() = 0;
  virtual void rollback() = 0;
  virtual void set_savepoint() = 0;
  virtual bool release_savepoint() = 0;  // whether it had a transaction id: something was written in it
  virtual void rollback_to_savepoint() = 0;
  // Runs what is deferred to the commit, if mq itself commits the transaction.
  virtual void check_deferred() {}
};

// Runs the body and the deferred constraints and triggers in a savepoint.
template <class Body>
void under_savepoint(Transaction& transaction, Body&& body) {
  transaction.set_savepoint();
  try {
    body();
    transaction.check_deferred();
  } catch (...) {
    transaction.rollback_to_savepoint();
    throw;
  }
  (void)transaction.release_savepoint();
}

}  // namespace mq
