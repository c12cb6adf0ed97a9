// The SQL functions that send: mq_insert, mq_send, mq_send_once, mq_send_many; and mq_channel_key.

#include <algorithm>
#include <vector>

#include "api/send_options.hpp"
#include "entries.h"
#include "pg/arguments.hpp"
#include "pg/extension.hpp"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "pg/result_set.hpp"
#include "pg/validate.hpp"
#include "queue/new_id.hpp"
#include "queue/sender.hpp"
#include "shmem/channel_key.hpp"

extern "C" {
#include "funcapi.h"
#include "utils/typcache.h"
}

namespace mq {

namespace {

constexpr std::size_t kMostPrerequisites = 10'000'000;  // of all messages of a call together

// The attributes of mq_new_t, by position. All are NULL if the type has more or fewer than these.
NewMessage new_message(Datum composite) {
  constexpr int kAttributes = 11;
  struct Deformed {
    Datum values[kAttributes];
    bool nulls[kAttributes];
  };
  const Deformed d = guard::call([&] {
    Deformed result;
    HeapTupleHeader header = DatumGetHeapTupleHeader(composite);
    TupleDesc descriptor = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header), HeapTupleHeaderGetTypMod(header));
    HeapTupleData tuple;
    tuple.t_len = HeapTupleHeaderGetDatumLength(header);
    ItemPointerSetInvalid(&tuple.t_self);
    tuple.t_tableOid = InvalidOid;
    tuple.t_data = header;
    if (descriptor->natts == kAttributes) {
      heap_deform_tuple(&tuple, descriptor, result.values, result.nulls);
    } else {
      for (int i = 0; i < kAttributes; ++i) result.nulls[i] = true;
    }
    ReleaseTupleDesc(descriptor);
    return result;
  });
  const auto at = [&](int i) { return Value{d.values[i], d.nulls[i]}; };
  return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10)};
}

}  // namespace

NewMessage common_arguments(FunctionCallInfo fcinfo, int name) {
  NewMessage message;
  message.channel_name = argument(fcinfo, 0);
  message.name = PG_ARGISNULL(name) ? argument(fcinfo, 0) : argument(fcinfo, name);
  message.channel_args = argument(fcinfo, name + 1);
  message.ordered = argument(fcinfo, name + 2);
  message.delay = argument(fcinfo, name + 3);
  message.retries = argument(fcinfo, name + 4);
  message.retry_backoff = argument(fcinfo, name + 5);
  message.commit_interval = argument(fcinfo, name + 6);
  message.payload_bytes = argument(fcinfo, name + 7);
  return message;
}

void set_options(FunctionCallInfo fcinfo, int priority, std::vector<Uuid>& after, NewMessage& message) {
  if (PG_NARGS() < priority + 4) throw Extension::get().needs_update();
  const std::int32_t given = int_of(argument(fcinfo, priority), "priority");
  check::priority("priority", given);
  message.priority = {Int16GetDatum(static_cast<std::int16_t>(given)), false};
  message.headers = argument(fcinfo, priority + 1);
  if (!PG_ARGISNULL(priority + 2)) {
    for (const Datum id : elements(argument(fcinfo, priority + 2), "after")) after.push_back(uuid_of(id));
    std::sort(after.begin(), after.end());
    after.erase(std::unique(after.begin(), after.end()), after.end());
    message.after = &after;
  }
  message.keep = argument(fcinfo, priority + 3);
}

}  // namespace mq

extern "C" Datum mq_insert_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_insert()");
    if (PG_ARGISNULL(0)) mq::check::fail_null("new_messages");
    const mq::Elements elements = mq::elements_of(PG_GETARG_DATUM(0));
    mq::Sender sender(mq::Sender::Json::kText, true);
    for (int i = 0; i < elements.count; ++i) {
      if (elements.nulls[i]) mq::check::fail_null(mq::check::element_of("new_messages", i + 1));
      sender.add(mq::new_message(elements.values[i]));
    }
    const mq::OwnerScope scope;
    const mq::SpiConnection spi;
    sender.send();
    return Datum{0};
  });
}

extern "C" Datum mq_send_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_send()");
    mq::NewMessage message = mq::common_arguments(fcinfo);
    message.payload_json = mq::argument(fcinfo, 1);
    Datum id = PG_ARGISNULL(10) ? mq::uuid_datum(mq::new_id()) : PG_GETARG_DATUM(10);
    message.id = {id, false};
    message.dedup_key = mq::argument(fcinfo, 11);
    std::vector<mq::Uuid> after;
    mq::set_options(fcinfo, 13, after, message);
    mq::Sender sender(mq::Sender::Json::kJsonb, false);
    if (!PG_ARGISNULL(12)) sender.expire_after(PG_GETARG_DATUM(12));
    if (!PG_ARGISNULL(10)) sender.reuse_ids();
    sender.add(message);
    mq::Uuid sent = sender.ids().front();
    {
      const mq::OwnerScope scope;
      const mq::SpiConnection spi;
      if (message.dedup_key.null)
        sender.send();
      else
        sent = sender.send_once();
    }
    if (sent != sender.ids().front()) id = mq::uuid_datum(sent);
    return id;
  });
}

extern "C" Datum mq_send_once_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_send_once()");
    if (PG_ARGISNULL(1)) mq::check::fail_null("dedup_key");
    mq::NewMessage message = mq::common_arguments(fcinfo, 3);
    message.dedup_key = mq::argument(fcinfo, 1);
    message.payload_json = mq::argument(fcinfo, 2);
    message.id = {mq::uuid_datum(mq::new_id()), false};
    std::vector<mq::Uuid> after;
    mq::set_options(fcinfo, 12, after, message);
    mq::Sender sender(mq::Sender::Json::kJsonb, false);
    if (!PG_ARGISNULL(11)) sender.expire_after(PG_GETARG_DATUM(11));
    sender.add(message);
    mq::Uuid id;
    {
      const mq::OwnerScope scope;
      const mq::SpiConnection spi;
      id = sender.send_once();
    }
    const Datum datum = mq::uuid_datum(id);
    const bool sent = id == sender.ids().front();
    return mq::guard::call([&] {
      TupleDesc descriptor = nullptr;
      if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE)
        elog(ERROR, "return type must be a row type");
      Datum values[2] = {datum, BoolGetDatum(sent)};
      bool nulls[2] = {false, false};
      return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls));
    });
  });
}

extern "C" Datum mq_send_many_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    mq::refuse_read_only("mq_send_many()");
    if (PG_ARGISNULL(1)) mq::check::fail_null("payloads");
    mq::ResultSet result(fcinfo);
    const mq::Elements elements = mq::elements_of(PG_GETARG_DATUM(1));
    mq::NewMessage message = mq::common_arguments(fcinfo);
    std::vector<mq::Uuid> after;
    mq::set_options(fcinfo, 11, after, message);
    mq::Sender sender(mq::Sender::Json::kJsonb, false);
    if (!PG_ARGISNULL(10)) sender.expire_after(PG_GETARG_DATUM(10));
    if (after.size() * static_cast<std::size_t>(elements.count) > mq::kMostPrerequisites)
      throw mq::Error("54000",
                      mq::format("{} messages that each wait for {} others are too many", elements.count, after.size()),
                      "", "Send one message that waits for the others, and let these wait for that one.");
    for (int i = 0; i < elements.count; ++i) {
      message.payload_json = {elements.values[i], elements.nulls[i]};
      message.id = {mq::uuid_datum(mq::new_id()), false};
      sender.add(message);
    }
    {
      const mq::OwnerScope scope;
      const mq::SpiConnection spi;
      sender.send();
    }
    for (const mq::Uuid& id : sender.ids()) result.add({mq::uuid_datum(id)});
    return Datum{0};
  });
}

extern "C" Datum mq_channel_key_entry(FunctionCallInfo fcinfo) {
  return mq::guard::entry([&] {
    return Int64GetDatum(mq::channel_key(mq::text_view(PG_GETARG_DATUM(0)), mq::text_view(PG_GETARG_DATUM(1))));
  });
}
