// Registry: which handler takes which message, for one role and database.
//
// Each worker, and each mq_run, has one (worker/loop.hpp). FmgrCaller::load() fills it from
// mq_handlers; the worker's loop and leased handlers read it. It is state of this process only.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pg/types.hpp"

namespace mq {

enum class Shape { kJson, kMessage, kBatch };  // f(jsonb), f(mq_message), f(mq_message[])

struct Handler {
  std::string channel_name;
  std::optional<std::string> message_name;  // none: every name that has no handler of its own
  std::string function;                     // its signature, as mq_handlers has it
  Shape shape = Shape::kJson;
  int batch_size = 0;   // most messages of this handler in a transaction; if leased, in a call
  int max_workers = 0;  // most workers at once, or leased calls; not above max_running of the channel; 0: no limit
  int priority = 0;     // a greater one goes first
  Micros timeout = 0;   // 0: none
  Micros max_backoff = 0;
  std::optional<Micros> keep;  // how long a handled message is kept that does not say so itself
  bool block_on_dead = false;
  bool leased = false;
  bool procedure = false;
  bool returns_json = false;  // its result is the message's result
  std::size_t slot = 0;       // index of FmgrCaller's data for it
};

// The handlers of one channel name.
struct Channel {
  std::string name;
  std::vector<std::unique_ptr<Handler>> handlers;
  // Why the channel is disabled: why one of its handlers cannot be called. Empty: it is not.
  std::string disabled;

  // The handler of that name, or else the handler of every other name. nullptr: there is none.
  const Handler* find(std::string_view message_name) const;
  int batch_size() const;   // the greatest of its handlers; at least 1
  int max_workers() const;  // the least limit of its handlers; 0: none has a limit
  int priority() const;     // the greatest of its handlers; 0 without handlers
  // All handlers of a channel name have the same mode, or the channel is disabled.
  bool leased() const { return !handlers.empty() && handlers.front()->leased; }
};

class Registry {
 public:
  void add(Handler handler);
  void disable(const std::string& channel_name, std::string why);
  void clear() { channels_.clear(); }

  const Channel* find(std::string_view channel_name) const;
  const std::map<std::string, Channel, std::less<>>& channels() const { return channels_; }
  std::vector<std::string> channel_names() const;  // of all channels, sorted
  // A text that changes when other channels or message names have handlers.
  std::string taken() const;

 private:
  std::map<std::string, Channel, std::less<>> channels_;
};

}  // namespace mq
