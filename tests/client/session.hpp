// A session with the server over libpq.
#pragma once

#include <libpq-fe.h>

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "wire.hpp"

namespace client {

class SqlError : public std::runtime_error {
 public:
  SqlError(std::string code, const std::string& what) : std::runtime_error(what), sqlstate(std::move(code)) {}
  const std::string sqlstate;
};

class Result {
 public:
  explicit Result(PGresult* result) : result_(result, PQclear) {}
  PGresult* get() const { return result_.get(); }
  int rows() const { return PQntuples(get()); }
  int columns() const { return PQnfields(get()); }
  bool null(int row, int column) const { return PQgetisnull(get(), row, column) != 0; }
  std::string_view bytes(int row, int column) const {
    return {PQgetvalue(get(), row, column), static_cast<std::size_t>(PQgetlength(get(), row, column))};
  }

 private:
  std::unique_ptr<PGresult, void (*)(PGresult*)> result_;
};

class Session {
 public:
  explicit Session(const std::string& conninfo);

  // Prepares the statement at its first use, with the types of the parameters, and runs it; the result is binary.
  Result run(std::string_view statement, const std::vector<Param>& params = {});
  // Types of its parameters; names and types of its columns as "name type".
  struct Shape {
    std::vector<Type> params;
    Names columns;
  };
  Shape shape(std::string_view statement, const std::vector<Type>& params);
  // Without parameters or a result: BEGIN, LISTEN and their like.
  void execute(const std::string& statement);

  int pid() const { return PQbackendPID(connection_.get()); }  // of the server's process
  int socket() const { return PQsocket(connection_.get()); }
  // How many notifications have come, without waiting for any.
  int notifications();

 private:
  Result checked(PGresult* result, std::string_view statement);
  const std::string& prepared(std::string_view statement, const std::vector<Type>& types);

  std::unique_ptr<PGconn, void (*)(PGconn*)> connection_;
  std::map<std::string, std::string, std::less<>> prepared_;  // names by statement
};

}  // namespace client
