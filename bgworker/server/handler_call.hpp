// Handlers, as the server sees them: found by their stored signature, checked, called through fmgr.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "../handler_session.hpp"
#include "../ports.hpp"
#include "claim_source.hpp"
#include "identity.hpp"
#include "postgres.hpp"

namespace mq {

// What a call has changed or removed, other than by its outcome.
struct Changes {
  std::vector<Uuid> ids;
  std::vector<std::string> channel_names;  // all their messages, or what they are handled by
  bool any = false;                        // it may be any message
};

// The argument type of a handler's shape in this database. Throws 42704.
Oid argument_type(Shape shape);
// The shape of a function, or of a procedure for leased mode; throws 42883 naming the shapes there are.
Shape shape_of(Oid function, bool leased);

class FmgrCaller : public HandlerCaller {
 public:
  explicit FmgrCaller(const SqlClaimSource& source) : source_(source) {}
  ~FmgrCaller() override;
  FmgrCaller(const FmgrCaller&) = delete;
  FmgrCaller& operator=(const FmgrCaller&) = delete;

  // Reads mq_handlers: the handlers that run as `role`. A channel whose handler cannot be called is parked.
  void load(Oid role, Registry& registry);

  void call(const Handler& handler, std::span<const Claimed* const> messages, bool yields) override;
  std::vector<Wish> wishes() override;
  bool has_changed(std::span<const Claimed> messages) override;
  // The call of a leased handler, for its session. The messages are those of the current claim.
  LeasedCall leased_call(const Handler& handler, std::span<const Claimed* const> messages);
  bool hurry() override;
  // For mq_run: a cancel by the user stops everything, not just the handler that it hit. An error that the handler
  // raised itself is no such cancel, whatever its SQLSTATE.
  void stop_when_cancelled() { stop_when_cancelled_ = true; }
  void note_cancel(const Error& error);
  const std::optional<Error>& cancelled() const { return cancelled_; }

 private:
  void resolve(Handler& handler, Oid role);
  Datum argument(const Handler& handler, std::span<const Claimed* const> messages, bool& null) const;

  const SqlClaimSource& source_;
  struct Function {
    FmgrInfo* info;  // of a transactional handler
    HandlerOwner owner;
    std::string statement;  // that calls a leased one
  };
  std::vector<Function> functions_;            // by Handler::slot
  MemoryContext functions_context_ = nullptr;  // owned; emptied by load
  MemoryContext call_context_ = nullptr;       // owned; emptied after each call
  TupleDesc message_descriptor_ = nullptr;     // of mq_message; in functions_context_
  Oid message_type_ = InvalidOid;
  std::map<std::string, std::string> parked_;  // by channel, why: what the log was told already
  Micros asked_at_ = 0;                        // when shared memory was last asked whether to hurry
  std::vector<Wish> wishes_;                   // of the last call
  Changes changes_;                            // likewise
  bool stop_when_cancelled_ = false;
  std::optional<Error> cancelled_;  // with what
};

// Throws 55000 inside of a handler: its messages are locked by its own transaction, and what claims would take
// them again.
void refuse_in_handler(const char* function);
bool is_in_handler();  // a transactional handler runs in this process

// Whether the transactional handler that runs in this process was called with the message of that id and place.
bool is_of_the_call(const Uuid& id, std::int64_t place);

// Notes what the transactional handler that runs in this process wishes for the message of that id, or for `any`: all
// that it was called with. Throws 22023 for an id that is not of the call. False: no such handler runs.
bool note_wish(const Wish& wish, bool any);

// Notes what the transactional handler that runs in this process, if one does, changes or removes: these messages;
// those of a channel name, or their handlers. Of what is rolled back again the note stays, which costs no more than a
// claim.
void note_changed(std::span<const Uuid> messages);
void note_changed(std::string_view channel_name);
void note_any_changed();

const char* name_of(Wish::Kind kind);
Error not_of_the_call(Wish::Kind kind);

}  // namespace mq
