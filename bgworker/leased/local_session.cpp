#include "leased/local_session.hpp"

#include <memory>

#include "handlers/time_limit.hpp"
#include "pg/extension.hpp"
#include "pg/guard.hpp"
#include "pg/handler_identity.hpp"
#include "queue/call_settings.hpp"
#include "queue/cancel_watch.hpp"
#include "shmem/channel_key.hpp"
#include "shmem/leased_calls.hpp"
#include "shmem/shared.hpp"

extern "C" {
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "nodes/params.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
}

namespace mq {

namespace {

constexpr Micros kUnlimited = 24 * 3600 * kSecond;  // in the lease of a handler without a limit

// Runs in the memory context of the SPI connection, which a COMMIT of the handler does not end.
// Returns the result if the call is to return one.
std::optional<std::string> execute(const LeasedCall& call, guard::Texts texts) {
  const char* statement = call.statement.c_str();
  const Oid type = call.parameter_type;
  const char* bytes = call.parameter ? call.parameter->data() : nullptr;
  const int size = call.parameter ? static_cast<int>(call.parameter->size()) : 0;
  const char* result = guard::call(
      [&]() -> const char* {
        ParamListInfo parameters = makeParamList(1);
        parameters->params[0] = {0, bytes == nullptr, PARAM_FLAG_CONST, type};
        if (bytes != nullptr) {
          Oid receive = InvalidOid;
          Oid element = InvalidOid;
          StringInfoData buffer;
          getTypeBinaryInputInfo(type, &receive, &element);
          initStringInfo(&buffer);
          appendBinaryStringInfo(&buffer, bytes, size);
          parameters->params[0].value = OidReceiveFunctionCall(receive, &buffer, element, -1);
        }
        SPIExecuteOptions options;
        memset(&options, 0, sizeof options);
        options.params = parameters;
        options.allow_nonatomic = true;
        const int code = SPI_execute_extended(statement, &options);
        if (code < 0) elog(ERROR, "SPI_execute_extended failed: %s", SPI_result_code_string(code));
        CHECK_FOR_INTERRUPTS();
        if (!call.result || SPI_processed != 1) return nullptr;
        return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
      },
      texts);
  return result == nullptr ? std::nullopt : std::optional<std::string>(result);
}

// Undoes the settings that the handler made.
class SettingsScope {
 public:
  SettingsScope() : nest_level_(NewGUCNestLevel()) {}
  ~SettingsScope() { AtEOXact_GUC(false, nest_level_); }
  SettingsScope(const SettingsScope&) = delete;
  SettingsScope& operator=(const SettingsScope&) = delete;

 private:
  const int nest_level_;
};

}  // namespace

void LocalSession::run(const LeasedCall& call) {
  error_.reset();
  result_.reset();
  transaction_.begin();
  transaction_.release_snapshot();
  const LocalCall running(call.settings);
  call.procedure ? run_procedure(call) : run_function(call);
  try {
    if (!error_) shared::leased_call_commits();
    transaction_.commit();
  } catch (const Error& error) {
    transaction_.rollback();
    if (!error_) error_ = error;
  }
}

// A procedure may COMMIT, so no savepoint can be around it, and its error ends mq_run. Then
// ~LocalLeaseStore() notes the aborted call, which is charged later.
void LocalSession::run_procedure(const LeasedCall& call) {
  const CancelWatch watch(shared::own_lease());
  try {
    const HandlerTimeout timeout(call.timeout);
    (void)execute(call, guard::Texts::kWhole);
    timeout.check();
  } catch (Error& error) {
    (void)HandlerTimeout::explain(error, call.timeout);
    throw;
  }
}

void LocalSession::run_function(const LeasedCall& call) {
  transaction_.set_savepoint();
  CancelWatch watch(shared::own_lease());
  try {
    const SettingsScope settings;
    const HandlerTimeout timeout(call.timeout);
    result_ = execute(call, guard::Texts::kKept);
    timeout.check();
  } catch (Error& error) {
    if (!HandlerTimeout::explain(error, call.timeout) && !watch.end()) caller_.note_cancel(error);
    error_ = error;
  }
  if (error_)
    transaction_.rollback_to_savepoint();
  else
    (void)transaction_.release_savepoint();
}

std::unique_ptr<HandlerSession> LocalLeaseStore::open(int) {
  if (!may_become(GetUserId(), GetSessionUserId()))
    throw Error("42501", "leased handlers cannot run on behalf of another session user",
                "In mode \"leased\" a handler runs with the rights of the session.",
                "Connect as the role that they run as.");
  return std::make_unique<LocalSession>(transaction_, caller_);
}

int LocalLeaseStore::enter(const Entry& entry) {
  number_ =
      enter_call({entry.token, MyProcPid, channel_key(entry.first.channel_name, {}), entry.handler.max_workers,
                  entry.handler.block_on_dead, entry.first.id, entry.first.channel_name, !entry.handler.procedure});
  if (!shared::available()) number_ = 0;
  message_ = entry.first.id;
  if (number_ >= 0) shared::set_handled_here(shared::HandledHere{entry.token, entry.handler.block_on_dead});
  return number_;
}

void LocalLeaseStore::leave(int number) {
  shared::set_handled_here(std::nullopt);
  shared::leave_lease(number);
  number_ = -1;
}

Micros LocalLeaseStore::lease_length(const Handler& handler) {
  return (handler.timeout > 0 ? handler.timeout : kUnlimited) + kLease;
}

}  // namespace mq
