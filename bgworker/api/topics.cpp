// Topics: mq_subscribe, mq_unsubscribe and mq_publish.
//
// mq.c calls it, for sessions. The file owns no state: subscriptions are rows of mq_subscribers. A
// publish sees those that are committed when it looks, and its own transaction's. It locks none, so
// neither waits for the other.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/send_options.hpp"
#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/refused_rows.hpp"
#include "pg/result_set.hpp"
#include "pg/statement.hpp"
#include "pg/validate.hpp"
#include "queue/append_lock.hpp"
#include "queue/new_id.hpp"
#include "queue/subscribers.hpp"
#include "queue/topics.hpp"
#include "shmem/channel_key.hpp"

extern "C" {
#include "catalog/pg_type.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
}

namespace mq {

namespace {

constexpr std::string_view kTopicHeader = "topic";

// The arguments with which a subscription begins, as parameters of a statement.
struct Subscription {
  Param topic, channel_name, own_args, channel_args;
};

Subscription subscription_of(FunctionCallInfo fcinfo) {
  const std::string_view topic = text_of(argument(fcinfo, 0), "topic");
  const std::string_view channel_name = text_of(argument(fcinfo, 1), "channel_name");
  topics::check_pattern("topic", topic);
  check::name("channel_name", channel_name);
  const bool own_args = !PG_ARGISNULL(2);
  const std::string_view channel_args = own_args ? text_view(PG_GETARG_DATUM(2)) : std::string_view();
  check::name("channel_args", channel_args, check::kArgsBytes);
  // An entry of the primary key has to fit into an index page.
  const std::size_t bytes = topic.size() + channel_name.size() + channel_args.size();
  if (bytes > check::kDedupBytes)
    check::fail(
        "topic", topic,
        mq::format("must not be longer than {} bytes together with channel_name and channel_args; these have {}",
                   check::kDedupBytes, bytes));
  return {text_datum(topic), text_datum(channel_name), BoolGetDatum(own_args), text_datum(channel_args)};
}

bool subscribe(FunctionCallInfo fcinfo) {
  static Statement insert(
      "INSERT INTO $S.mq_subscribers AS s (topic, channel_name, own_args, channel_args, ordered)"
      " VALUES ($1, $2, $3, $4, $5)"
      " ON CONFLICT (topic, channel_name, own_args, channel_args) DO UPDATE SET ordered = $5"
      " RETURNING s.xmax = 0",
      {TEXTOID, TEXTOID, BOOLOID, TEXTOID, BOOLOID});
  const Subscription subscription = subscription_of(fcinfo);
  const bool ordered = bool_of(argument(fcinfo, 3), "ordered");
  const OwnerScope scope;
  const SpiConnection spi;
  const Rows rows = insert.run({subscription.topic, subscription.channel_name, subscription.own_args,
                                subscription.channel_args, BoolGetDatum(ordered)});
  if (rows.empty()) throw refused("mq_subscribers", "being added");
  return DatumGetBool(rows.get(0, 1));
}

bool unsubscribe(FunctionCallInfo fcinfo) {
  static Statement remove(
      "DELETE FROM $S.mq_subscribers s"
      " WHERE s.topic = $1 AND s.channel_name = $2 AND s.own_args = $3 AND s.channel_args = $4 RETURNING 1",
      {TEXTOID, TEXTOID, BOOLOID, TEXTOID});
  const Subscription subscription = subscription_of(fcinfo);
  const OwnerScope scope;
  const SpiConnection spi;
  return !remove.run({subscription.topic, subscription.channel_name, subscription.own_args, subscription.channel_args})
              .empty();
}

// The headers with the topic. Headers that have one, or are no object, stay as they are.
Value with_topic(const Value& headers, std::string_view topic) {
  const char* bytes = topic.data();
  const auto size = static_cast<int>(topic.size());
  const Datum result = guard::call([&] {
    if (!headers.null && !JB_ROOT_IS_OBJECT(DatumGetJsonbP(headers.datum))) return headers.datum;
    JsonbParseState* state = nullptr;
    JsonbValue key, value;
    key.type = value.type = jbvString;
    key.val.string = {static_cast<int>(kTopicHeader.size()), const_cast<char*>(kTopicHeader.data())};
    value.val.string = {size, const_cast<char*>(bytes)};
    pushJsonbValue(&state, WJB_BEGIN_OBJECT, nullptr);
    pushJsonbValue(&state, WJB_KEY, &key);
    pushJsonbValue(&state, WJB_VALUE, &value);
    const Datum own = JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, nullptr)));
    return headers.null ? own : DirectFunctionCall2(jsonb_concat, own, headers.datum);  // the second one's keys win
  });
  return {result, false};
}

// The channels that get a message, in the order in which their ids are returned, and whether it is ordered there.
using Channels = std::map<std::pair<std::string, std::string>, bool>;

Channels channels_of(std::string_view topic, std::string_view channel_args, bool ordered) {
  Channels channels;
  for (const Subscriber& subscriber : subscribers_of(topic)) {
    const std::string args = subscriber.channel_args.value_or(std::string(channel_args));
    channels[{subscriber.channel_name, args}] |= ordered || subscriber.ordered;
  }
  return channels;
}

class Publish {
 public:
  explicit Publish(FunctionCallInfo fcinfo)
      : topic_(text_of(argument(fcinfo, 0), "topic")),
        expires_(argument(fcinfo, 11)),
        message_(common_arguments(fcinfo)),
        has_name_(!PG_ARGISNULL(2)) {
    topics::check_topic("topic", topic_);
    message_.payload_json = argument(fcinfo, 1);
    message_.dedup_key = argument(fcinfo, 10);
    set_options(fcinfo, 12, after_, message_);
    message_.headers = with_topic(message_.headers, topic_);
    validate();
  }

  std::vector<Uuid> run() {
    const Channels channels =
        channels_of(topic_, text_view(message_.channel_args.datum), DatumGetBool(message_.ordered.datum));
    if (channels.empty()) return {};
    const OwnerScope scope;
    const SpiConnection spi;
    return message_.dedup_key.null ? send(channels) : send_once(channels);
  }

 private:
  Sender sender() const {
    Sender made(Sender::Json::kJsonb, false);
    if (!expires_.null) made.expire_after(expires_.datum);
    return made;
  }

  // A bad argument is refused whether anybody has subscribed or not.
  void validate() const {
    NewMessage message = message_;
    message.channel_name = {text_datum(""), false};
    message.id = {uuid_datum(new_id()), false};
    sender().add(message);
  }

  NewMessage message_to(const Channels::value_type& channel) const {
    const auto& [name_and_args, ordered] = channel;
    NewMessage message = message_;
    message.id = {uuid_datum(new_id()), false};
    message.channel_name = {text_datum(name_and_args.first), false};
    message.channel_args = {text_datum(name_and_args.second), false};
    if (!has_name_) message.name = message.channel_name;
    if (ordered) {
      message.ordered = {BoolGetDatum(true), false};
      message.priority = {Int16GetDatum(0), false};  // the subscription may ask for the order, not the publisher
    }
    return message;
  }

  std::vector<Uuid> send(const Channels& channels) const {
    Sender all = sender();
    for (const auto& channel : channels) all.add(message_to(channel));
    all.send();
    return all.ids();
  }

  // Append locks before the waits for others' keys, and both in an order that all have: so two that publish
  // the same do not deadlock.
  std::vector<Uuid> send_once(const Channels& channels) const {
    std::vector<std::int64_t> keys;
    for (const auto& [name_and_args, ordered] : channels)
      if (ordered) keys.push_back(channel_key(name_and_args.first, name_and_args.second));
    if (!keys.empty()) lock_appends(keys);
    std::vector<Uuid> ids;
    for (const auto& channel : channels) {
      Sender one = sender();
      one.add(message_to(channel));
      ids.push_back(one.send_once());
    }
    return ids;
  }

  const std::string_view topic_;
  const Value expires_;
  NewMessage message_;
  const bool has_name_;
  std::vector<Uuid> after_;
};

}  // namespace

}  // namespace mq

extern "C" Datum mq_subscribe_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_subscribe()");
    return BoolGetDatum(mq::subscribe(fcinfo));
  });
}

extern "C" Datum mq_unsubscribe_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_unsubscribe()");
    return BoolGetDatum(mq::unsubscribe(fcinfo));
  });
}

extern "C" Datum mq_publish_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_publish()");
    mq::ResultSet result(fcinfo);
    for (const mq::Uuid& id : mq::Publish(fcinfo).run()) result.add({mq::uuid_datum(id)});
    return Datum{0};
  });
}
