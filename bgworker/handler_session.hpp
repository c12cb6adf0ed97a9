// A session of its own that leased handlers run in, one after another. Nothing here waits: poll() moves on what can
// be moved on, and socket() says what to wait for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "error.hpp"

namespace mq {

// A statement with one parameter, in the binary format of its type.
struct LeasedCall {
  std::string statement;
  std::uint32_t parameter_type;
  std::optional<std::string> parameter;
  bool procedure = false;    // which may COMMIT
  std::int64_t timeout = 0;  // microseconds; 0: none
};

struct Socket {
  int descriptor;
  bool to_write;  // wait until it can be written; else until there is something to read
};

class HandlerSession {
 public:
  virtual ~HandlerSession() = default;

  enum class State {
    kConnecting,
    kIdle,  // connected; what was run last is over
    kBusy,
    kBroken,  // no connection: refused, lost, or ended
  };
  virtual State poll() = 0;

  // When idle: what ended the last statement, if it failed. When broken: why.
  virtual const std::optional<Error>& error() const = 0;
  // Process id of the server's side, once connected.
  virtual int backend() const = 0;
  virtual Socket socket() const = 0;

  // When idle.
  virtual void run(const LeasedCall& call) = 0;
  virtual void clean() = 0;  // undoes what the last handler has left behind in the session
};

}  // namespace mq
