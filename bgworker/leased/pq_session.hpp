// HandlerSession over libpq. It uses libpq's asynchronous calls only, so nothing here waits.
//
// SqlLeaseStore (lease_store.cpp) opens the sessions of a worker; LeasedHandlers drives them. The
// connection belongs to this process.
#pragma once

#include <memory>
#include <string>

#include "leased/handler_session.hpp"

struct pg_conn;  // of libpq

namespace mq {

// The sessions' application_name, unless mq.leased_conninfo sets another.
inline constexpr const char* kLeasedApplicationName = "mq handler";

struct SessionParameters {
  // The setting mq.leased_conninfo. Its host or service must not need a name server: libpq would
  // wait for the answer.
  std::string conninfo;
  std::string socket_host;  // used with socket_port if conninfo has no host, hostaddr or service
  std::string socket_port;
  std::string database;  // this, role and encoding replace what conninfo says
  std::string role;
  std::string encoding;
  std::string options;  // command-line options for the server; those of conninfo come before them
};

class PqSession : public HandlerSession {
 public:
  // Begins to connect. If that fails at once, the session is kBroken.
  explicit PqSession(const SessionParameters& parameters);

  State poll() override;
  const std::optional<Error>& error() const override { return error_; }
  int backend() const override;
  Socket socket() const override;
  void run(const LeasedCall& call) override;
  void clean() override;
  std::optional<std::string> result() override { return result_; }

 private:
  struct Finish {
    void operator()(pg_conn* connection) const;
  };

  State connect();
  State read();
  State broken();
  void sent(bool accepted);

  std::unique_ptr<pg_conn, Finish> connection_;
  State state_ = State::kConnecting;
  bool to_write_ = true;
  std::optional<Error> error_;
  bool wants_result_ = false;
  std::optional<std::string> result_;
};

// Why libpq cannot parse this value of mq.leased_conninfo; empty: it can.
std::string conninfo_error(const char* conninfo);

}  // namespace mq
