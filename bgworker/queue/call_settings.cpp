#include "queue/call_settings.hpp"

#include <array>
#include <string_view>

#include "entries.h"
#include "pg/guard.hpp"
#include "pg/packed.hpp"
#include "pg/settings.h"
#include "pg/statement.hpp"
#include "queue/current_call.hpp"
#include "shmem/leased_calls.hpp"

extern "C" {
#include "access/parallel.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "storage/proc.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/portal.h"
}

namespace mq {

namespace {

const std::string* local_call = nullptr;  // set by LocalCall
bool setting_call = false;                // this process sets mq.call now; set by mq_hand_over_call()

using Values = std::array<std::string, MQ_CALL_SETTINGS>;

std::string traceparent_of(const void* headers) {
  if (headers == nullptr) return {};
  const std::string_view found = guard::call([&] {
    const Jsonb* object = DatumGetJsonbP(PointerGetDatum(headers));
    static constexpr std::string_view kKey = "traceparent";
    JsonbValue key;
    key.type = jbvString;
    key.val.string.val = const_cast<char*>(kKey.data());
    key.val.string.len = static_cast<int>(kKey.size());
    const JsonbValue* value = findJsonbValueFromContainer(const_cast<JsonbContainer*>(&object->root), JB_FOBJECT, &key);
    if (value == nullptr || value->type != jbvString) return std::string_view();
    return std::string_view(value->val.string.val, static_cast<std::size_t>(value->val.string.len));
  });
  return std::string(found);
}

Values values_of(const Claimed& message) {
  const std::string_view id = guard::call([&] {
    return std::string_view(DatumGetCString(DirectFunctionCall1(uuid_out, PointerGetDatum(message.id.bytes.data()))));
  });
  return {std::string(id), std::string(message.channel_name), std::string(message.channel_args),
          std::to_string(message.attempts + 1), traceparent_of(message.headers)};
}

Values values_of(std::span<const Claimed* const> messages) {
  Values common = values_of(*messages.front());
  for (const Claimed* message : messages.subspan(1)) {
    const Values other = values_of(*message);
    for (std::size_t i = 0; i < common.size(); ++i)
      if (common[i] != other[i]) common[i].clear();
  }
  return common;
}

// The text that the worker has sent to this session with the call that it runs; empty: it runs none.
std::string_view sent_text() {
  if (!shared::handled_here()) return {};
  // The protocol alone makes a portal without a name.
  const Portal portal = guard::call([] { return GetPortalByName(""); });
  if (!PortalIsValid(portal) || portal->portalParams == nullptr || portal->portalParams->numParams < 2) return {};
  const ParamExternData& sent = portal->portalParams->params[1];
  return sent.isnull || sent.ptype != TEXTOID ? std::string_view() : text_view(sent.value);
}

// As packed() of the call that this process runs; empty: it runs none.
std::string text_here() {
  if (IsParallelWorker()) return mq_call;
  if (const CurrentCall* call = CurrentCall::here()) return call_text(call->messages);
  return local_call != nullptr ? *local_call : std::string(sent_text());
}

}  // namespace

std::string call_text(std::span<const Claimed* const> messages) {
  return packed(values_of(messages));
}

LocalCall::LocalCall(const std::string& text) : before_(local_call) {
  local_call = &text;
}

LocalCall::~LocalCall() {
  local_call = before_;
}

}  // namespace mq

extern "C" const char* mq_show_call(MqCallSetting setting) {
  if (MyProc == nullptr) return "";
  return mq::guard::entry([&]() -> const char* {
    mq::Values values;
    mq::unpack(mq::text_here(), values);
    const std::string& value = values[setting];
    return mq::guard::call([&] { return pnstrdup(value.data(), value.size()); });
  });
}

extern "C" void mq_hand_over_call() {
  if (IsInParallelMode()) return;
  mq::guard::callback([] {
    const std::string text = mq::text_here();
    if (text == mq_call) return;
    mq::setting_call = true;
    try {
      const char* value = text.c_str();
      mq::guard::call([&] { SetConfigOption("mq.call", value, PGC_SIGHUP, PGC_S_SESSION); });
    } catch (...) {
      mq::setting_call = false;
      throw;
    }
    mq::setting_call = false;
  });
}

extern "C" bool mq_may_set_call() {
  return mq::setting_call || InitializingParallelWorker;
}
