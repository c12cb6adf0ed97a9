#include "queue/current_call.hpp"

#include <algorithm>

#include "entries.h"
#include "pg/format.hpp"
#include "pg/guard.hpp"
#include "queue/commit_actions.hpp"

namespace mq {

namespace {

CurrentCall* current_call = nullptr;  // set by CurrentCall

void subtransaction_ends(const SubtransactionEnd& end) {
  if (current_call != nullptr) current_call->dispositions.ends(end);
}

}  // namespace

CurrentCall::CurrentCall(std::span<const Claimed* const> called_with, bool shares)
    : messages(called_with), is_shared(shares) {
  current_call = this;
}

CurrentCall::~CurrentCall() {
  current_call = nullptr;
}

const CurrentCall* CurrentCall::here() {
  return current_call;
}

const char* name_of(Disposition::Kind kind) {
  return kind == Disposition::kSnooze ? "mq_snooze" : "mq_discard";
}

Error not_of_the_call(Disposition::Kind kind) {
  return {"22023", mq::format("{}: the handler was not called with a message of that id", name_of(kind))};
}

bool in_call() {
  return current_call != nullptr;
}

bool note_disposition(const Disposition& disposition, bool any) {
  if (current_call == nullptr) return false;
  static bool registered = false;
  if (!registered) {
    at_subtransaction_end(subtransaction_ends);
    registered = true;
  }
  bool found = false;
  for (const Claimed* message : current_call->messages) {
    if (!any && message->id != disposition.id) continue;
    found = true;
    current_call->dispositions.add({disposition.kind, message->id, disposition.delay, disposition.reason});
  }
  if (!found) throw not_of_the_call(disposition.kind);
  return true;
}

bool is_of_the_call(const Uuid& id, std::int64_t seq) {
  return current_call != nullptr &&
         std::any_of(current_call->messages.begin(), current_call->messages.end(),
                     [&](const Claimed* mine) { return mine->id == id && mine->seq == seq; });
}

bool is_of_the_call(const Uuid& id) {
  return current_call != nullptr && std::any_of(current_call->messages.begin(), current_call->messages.end(),
                                                [&](const Claimed* mine) { return mine->id == id; });
}

void note_changed(std::span<const Uuid> messages) {
  if (current_call == nullptr) return;
  std::vector<Uuid>& ids = current_call->changes.ids;
  ids.insert(ids.end(), messages.begin(), messages.end());
}

void note_changed(std::string_view channel_name) {
  if (current_call != nullptr) current_call->changes.channel_names.emplace_back(channel_name);
}

void note_any_changed() {
  if (current_call != nullptr) current_call->changes.any = true;
}

void refuse_in_handler(const char* function) {
  if (current_call != nullptr) throw Error("55000", mq::format("{} must not be called by a handler", function));
}

}  // namespace mq

extern "C" void mq_messages_changed() {
  mq::note_any_changed();
  mq::guard::callback([] { mq::commit_actions::any_ended(); });
}

extern "C" bool mq_wants_exclusive() {
  if (mq::current_call == nullptr || !mq::current_call->is_shared) return false;
  mq::current_call->felt = true;
  return true;
}
