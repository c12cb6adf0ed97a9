// LeasedCall: the statement by which a session calls a leased handler. FmgrCaller::leased_call()
// makes it; HandlerSession::run() executes it. It is plain data of one process.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace mq {

struct LeasedCall {
  std::string statement;                 // with one parameter, $1
  std::string settings;                  // what the call's settings are (queue/call_settings.hpp); sent as $2
  std::uint32_t parameter_type;          // an Oid
  std::optional<std::string> parameter;  // in the binary format of its type; none: NULL
  bool procedure = false;                // a procedure, which may COMMIT
  std::int64_t timeout = 0;              // microseconds; 0: none
  bool result = false;                   // the statement returns the handler's result, jsonb as text
};

}  // namespace mq
