#include "leased/pq_session.hpp"

#include <libpq-fe.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "pg/clean_text.hpp"

namespace mq {

namespace {

constexpr Oid kTextOid = 25;  // of the type text, in every server

struct FreeOptions {
  void operator()(PQconninfoOption* options) const { PQconninfoFree(options); }
};
using Options = std::unique_ptr<PQconninfoOption, FreeOptions>;

struct ClearResult {
  void operator()(PGresult* result) const { PQclear(result); }
};
using Result = std::unique_ptr<PGresult, ClearResult>;

struct FreeNotification {
  void operator()(PGnotify* notification) const { PQfreemem(notification); }
};
using Notification = std::unique_ptr<PGnotify, FreeNotification>;

bool is_ready(Socket socket) {
  pollfd file{socket.descriptor, static_cast<short>(socket.to_write ? POLLOUT : POLLIN), 0};
  return ::poll(&file, 1, 0) != 0;
}

std::string trimmed(std::string_view text) {
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  return std::string(text);
}

std::size_t clip(std::string_view text, std::size_t most, int encoding) {
  std::size_t whole = 0;
  for (;;) {
    const auto next = whole + static_cast<std::size_t>(std::max(1, PQmblen(text.data() + whole, encoding)));
    if (next > most) return whole;
    whole = next;
  }
}

// The texts are cut (kept_text): an error may quote a payload, and is recorded in mq_failures.
Error error_of(const PGresult* result, int encoding) {
  const auto field = [&](int code) {
    const char* text = PQresultErrorField(result, code);
    return trimmed(kept_text(text != nullptr ? text : "", clip, encoding));
  };
  Error error(field(PG_DIAG_SQLSTATE), field(PG_DIAG_MESSAGE_PRIMARY), field(PG_DIAG_MESSAGE_DETAIL),
              field(PG_DIAG_MESSAGE_HINT));
  error.context = field(PG_DIAG_CONTEXT);
  if (error.sqlstate.empty()) error.sqlstate = "08006";
  if (error.message.empty()) error.message = kept_text(trimmed(PQresultErrorMessage(result)), clip, encoding);
  return error;
}

bool is_failure(const PGresult* result) {
  const ExecStatusType status = PQresultStatus(result);
  return status == PGRES_FATAL_ERROR || status == PGRES_BAD_RESPONSE;
}

}  // namespace

std::string conninfo_error(const char* conninfo) {
  char* message = nullptr;
  const Options options(PQconninfoParse(conninfo, &message));
  std::string text = trimmed(message != nullptr ? message : "");
  if (message != nullptr) PQfreemem(message);
  if (options) return {};
  return text.empty() ? "out of memory" : text;
}

void PqSession::Finish::operator()(pg_conn* connection) const {
  PQfinish(connection);
}

int PqSession::backend() const {
  return PQbackendPID(connection_.get());
}

PqSession::PqSession(const SessionParameters& parameters) {
  const Options given(PQconninfoParse(parameters.conninfo.c_str(), nullptr));
  std::vector<const char*> keywords;
  std::vector<const char*> values;
  const auto add = [&](const char* keyword, const char* value) {
    keywords.push_back(keyword);
    values.push_back(value);
  };
  bool has_host = false;
  std::string options = parameters.options;
  for (const PQconninfoOption* option = given.get(); option != nullptr && option->keyword != nullptr; ++option) {
    if (option->val == nullptr) continue;
    const std::string keyword = option->keyword;
    has_host = has_host || keyword == "host" || keyword == "hostaddr" || keyword == "service";
    if (keyword == "options")
      options = option->val + (" " + options);
    else if (keyword != "dbname" && keyword != "user" && keyword != "client_encoding")
      add(option->keyword, option->val);
  }
  if (!has_host) {
    add("host", parameters.socket_host.c_str());
    add("port", parameters.socket_port.c_str());
  }
  add("dbname", parameters.database.c_str());
  add("user", parameters.role.c_str());
  add("client_encoding", parameters.encoding.c_str());
  add("fallback_application_name", kLeasedApplicationName);
  add("options", options.c_str());
  keywords.push_back(nullptr);
  values.push_back(nullptr);
  connection_.reset(PQconnectStartParams(keywords.data(), values.data(), 0));
  if (!connection_ || PQstatus(connection_.get()) == CONNECTION_BAD) {
    state_ = broken();
    return;
  }
  PQsetNoticeReceiver(
      connection_.get(), [](void*, const PGresult*) {}, nullptr);
}

HandlerSession::State PqSession::poll() {
  if (state_ == State::kConnecting)
    state_ = connect();
  else if (state_ != State::kBroken)
    state_ = read();
  return state_;
}

HandlerSession::State PqSession::connect() {
  if (!is_ready(socket())) return State::kConnecting;
  switch (PQconnectPoll(connection_.get())) {
    case PGRES_POLLING_OK:
      to_write_ = false;
      return PQsetnonblocking(connection_.get(), 1) == 0 ? State::kIdle : broken();
    case PGRES_POLLING_READING:
      to_write_ = false;
      return State::kConnecting;
    case PGRES_POLLING_WRITING:
      to_write_ = true;
      return State::kConnecting;
    default:
      return broken();
  }
}

HandlerSession::State PqSession::read() {
  const int flushed = PQflush(connection_.get());
  to_write_ = flushed == 1;
  if (PQconsumeInput(connection_.get()) == 0) return broken();
  // Drops notifications: a handler may have used LISTEN.
  while (const Notification notification{PQnotifies(connection_.get())}) {
  }
  while (PQisBusy(connection_.get()) == 0) {
    const Result result(PQgetResult(connection_.get()));
    if (!result) {
      if (PQstatus(connection_.get()) == CONNECTION_BAD) return broken();
      return State::kIdle;
    }
    if (is_failure(result.get())) {
      error_ = error_of(result.get(), PQclientEncoding(connection_.get()));
    } else if (wants_result_ && PQresultStatus(result.get()) == PGRES_TUPLES_OK) {
      if (PQntuples(result.get()) == 1 && PQgetisnull(result.get(), 0, 0) == 0)
        result_.emplace(PQgetvalue(result.get(), 0, 0), static_cast<std::size_t>(PQgetlength(result.get(), 0, 0)));
    } else if (PQresultStatus(result.get()) == PGRES_COPY_IN || PQresultStatus(result.get()) == PGRES_COPY_OUT) {
      return broken();  // a call of a function never starts a COPY
    }
  }
  return State::kBusy;
}

HandlerSession::State PqSession::broken() {
  if (!error_) {
    std::string text = connection_ ? trimmed(PQerrorMessage(connection_.get())) : std::string("out of memory");
    const std::size_t line = std::min(text.find('\n'), text.size());  // then advice
    error_ = Error("08006", text.empty() ? std::string("connection lost") : text.substr(0, line));
  }
  state_ = State::kBroken;
  return state_;
}

Socket PqSession::socket() const {
  return {PQsocket(connection_.get()), to_write_};
}

void PqSession::run(const LeasedCall& call) {
  error_.reset();
  result_.reset();
  wants_result_ = call.result;
  const std::array<Oid, 2> types{call.parameter_type, kTextOid};
  const std::array<const char*, 2> values{call.parameter ? call.parameter->data() : nullptr, call.settings.c_str()};
  const std::array<int, 2> lengths{call.parameter ? static_cast<int>(call.parameter->size()) : 0,
                                   static_cast<int>(call.settings.size())};
  const std::array<int, 2> formats{1, 1};
  sent(PQsendQueryParams(connection_.get(), call.statement.c_str(), 2, types.data(), values.data(), lengths.data(),
                         formats.data(), 1) == 1);
}

void PqSession::clean() {
  error_.reset();
  result_.reset();
  wants_result_ = false;
  sent(PQsendQuery(connection_.get(), "DISCARD ALL") == 1);
}

void PqSession::sent(bool accepted) {
  state_ = accepted ? State::kBusy : broken();
  if (accepted) to_write_ = PQflush(connection_.get()) == 1;
}

}  // namespace mq
