// HandlerSession over libpq, with its asynchronous calls only.
#pragma once

#include <memory>
#include <string>

#include "handler_session.hpp"

struct pg_conn;  // libpq's

namespace mq {

// Unless mq.leased_conninfo gives another.
inline constexpr const char* kLeasedApplicationName = "mq handler";

// What a session is opened with.
struct SessionParameters {
  std::string conninfo;     // as mq.leased_conninfo; a host, an address or a service must not need a name server
  std::string socket_host;  // where conninfo names no host
  std::string socket_port;
  std::string database;  // these are ours to say, whatever conninfo says
  std::string role;
  std::string encoding;
  std::string options;  // for the server, behind those of conninfo
};

class PqSession : public HandlerSession {
 public:
  // Begins to connect.
  explicit PqSession(const SessionParameters& parameters);

  State poll() override;
  const std::optional<Error>& error() const override { return error_; }
  int backend() const override;
  Socket socket() const override;
  void run(const LeasedCall& call) override;
  void clean() override;

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
};

// Why mq.leased_conninfo cannot be one; empty: it can.
std::string conninfo_error(const char* conninfo);

}  // namespace mq
