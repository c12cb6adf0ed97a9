// Registry: which handler takes which message. Filled from mq_handlers by the server layer, for one role.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "message.hpp"

namespace mq {

enum class Shape { kJson, kMessage, kBatch };  // f(jsonb), f(mq_message), f(mq_message[])

struct Handler {
  std::string channel_name;
  std::optional<std::string> message_name;  // none: every name that has no handler of its own
  std::string function;                     // as registered, for error messages
  Shape shape = Shape::kJson;
  int batch_size = 0;   // most messages of this handler in a transaction
  int max_workers = 0;  // 0: no limit of its own
  int priority = 0;
  Micros timeout = 0;
  Micros max_backoff = 0;
  bool block_on_dead = false;
  bool leased = false;
  bool procedure = false;
  std::size_t slot = 0;  // the server layer's function call information
};

// The handlers of one channel name.
struct Channel {
  std::string name;
  std::vector<std::unique_ptr<Handler>> handlers;
  // Why its messages are left where they are: a handler that cannot be called. Empty: they are handled.
  std::string parked;

  // An exact name wins over the handler for every name. nullptr: none matches.
  const Handler* find(std::string_view message_name) const;
  // Most messages to claim for one transaction, and most workers at once (0: no limit).
  int batch_size() const;
  int max_workers() const;
  int priority() const;  // the greatest
  // All handlers of a channel name have the same mode.
  bool leased() const { return !handlers.empty() && handlers.front()->leased; }
};

class Registry {
 public:
  void add(Handler handler);
  void park(const std::string& channel_name, std::string why);
  void clear() { channels_.clear(); }

  const Channel* find(std::string_view channel_name) const;
  const std::map<std::string, Channel, std::less<>>& channels() const { return channels_; }

 private:
  std::map<std::string, Channel, std::less<>> channels_;
};

}  // namespace mq
