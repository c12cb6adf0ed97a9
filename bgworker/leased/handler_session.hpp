// Handler session: the session that leased handlers run in, one after another.
//
// LeasedHandlers (executor.hpp) opens and drives them. PqSession implements it over libpq, for
// workers, and nothing in it waits; LocalSession is the session of mq_run, and its run() returns
// when the handler has. A session belongs to the process that made it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "handlers/leased_call.hpp"
#include "pg/error.hpp"

namespace mq {

struct Socket {
  int descriptor;
  bool to_write;  // wait until it can be written; false: until it can be read
};

class HandlerSession {
 public:
  virtual ~HandlerSession() = default;

  enum class State {
    kConnecting,
    kIdle,    // connected, and no statement runs
    kBusy,    // a statement runs
    kBroken,  // no connection: refused, lost, or ended
  };
  // Reads and sends what it can without waiting, and returns the state then.
  virtual State poll() = 0;

  // If idle: the error of the last statement, if it failed. If broken: the reason.
  virtual const std::optional<Error>& error() const = 0;
  // If idle, and the last statement was to return a result (LeasedCall::result) and has: that.
  virtual std::optional<std::string> result() { return std::nullopt; }
  // Process id of the server process, once connected.
  virtual int backend() const = 0;
  // The socket to wait for before the next poll(). Descriptor -1: there is none.
  virtual Socket socket() const = 0;

  // Only an idle session may be given these.
  virtual void run(const LeasedCall& call) = 0;
  virtual void clean() = 0;  // undoes what the last handler left behind in the session
};

}  // namespace mq
