// HandlerCaller: calls transactional handlers. Dispatcher (worker/dispatch.cpp) uses it, and
// Worker::run_until_empty() asks should_yield(). FmgrCaller (call.hpp) implements it, and the unit
// tests a fake.
#pragma once

#include <span>
#include <vector>

#include "handlers/registry.hpp"
#include "queue/disposition.hpp"
#include "queue/message.hpp"

namespace mq {

// Thrown instead of an error if a call was stopped for the sake of other calls: it lasted while
// other messages waited behind it, or it did something that affects other calls of its transaction.
// No attempt is charged.
struct Yielded {
  bool conflicted;    // the call waited for a lock, and another worker did, too
  bool felt = false;  // it did something that affects other calls, so it has to run exclusively
};

// Thrown instead of an error if messages of the call were cancelled, before or while it ran. They are
// not to be handled any more; the others of the call run again.
struct Cancelled {
  std::vector<Uuid> messages;
};

class HandlerCaller {
 public:
  virtual ~HandlerCaller() = default;
  // Asked once for a batch: whether may_begin() might keep any message from beginning at the moment.
  virtual bool may_refuse() { return false; }
  // Asked before each call, if so: how many of these messages it may have, from the first on. 0: it may not begin.
  // Those that may count as begun.
  virtual std::size_t may_begin(std::span<const Claimed* const> messages) { return messages.size(); }
  // Calls the handler with one message, or a batch handler with several. Throws what the handler
  // raised, Yielded and Cancelled. `yields`: other messages are claimed with these, so a call that lasts may
  // be stopped.
  virtual void call(const Handler& handler, std::span<const Claimed* const> messages, bool yields) = 0;
  // The dispositions that the handler asked for in the last call. May be called once after each call.
  virtual std::vector<Disposition> dispositions() { return {}; }
  // What the last call returned for each of its messages (jsonb; nullptr: nothing), where it is wanted; else
  // empty. The values live to the end of the transaction.
  virtual std::span<const void* const> results() { return {}; }
  // Whether the last call may have changed or removed any of these messages, or their handlers.
  virtual bool has_changed(std::span<const Claimed> /* messages */) { return false; }
  // Whether the batch should end soon: this process is told to end, the user has cancelled mq_run,
  // or the worker must leave (another session wants the database alone, say).
  virtual bool should_yield() = 0;
};

}  // namespace mq
