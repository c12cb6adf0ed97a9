#include "session.hpp"

namespace client {

Session::Session(const std::string& conninfo) : connection_(PQconnectdb(conninfo.c_str()), PQfinish) {
  if (PQstatus(connection_.get()) != CONNECTION_OK)
    throw SqlError("08001", "cannot connect: " + std::string(PQerrorMessage(connection_.get())));
  PQsetNoticeProcessor(
      connection_.get(), [](void*, const char*) {}, nullptr);
}

Result Session::checked(PGresult* result, std::string_view statement) {
  Result owned(result);
  const ExecStatusType status = PQresultStatus(result);
  if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK) return owned;
  const char* sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
  const char* message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
  throw SqlError(sqlstate != nullptr ? sqlstate : "08006",
                 std::string(statement) + ": " + (sqlstate != nullptr ? sqlstate : "") + " " +
                     (message != nullptr ? message : PQerrorMessage(connection_.get())));
}

const std::string& Session::prepared(std::string_view statement, const std::vector<Type>& types) {
  const auto found = prepared_.find(statement);
  if (found != prepared_.end()) return found->second;
  const std::string name = "s" + std::to_string(prepared_.size());
  const std::vector<Oid> oids(types.begin(), types.end());
  checked(PQprepare(connection_.get(), name.c_str(), std::string(statement).c_str(), static_cast<int>(oids.size()),
                    oids.data()),
          statement);
  return prepared_.emplace(statement, name).first->second;
}

Result Session::run(std::string_view statement, const std::vector<Param>& params) {
  std::vector<Type> types;
  std::vector<const char*> values;
  std::vector<int> lengths;
  for (const Param& param : params) {
    types.push_back(param.type);
    values.push_back(param.bytes ? param.bytes->data() : nullptr);
    lengths.push_back(param.bytes ? static_cast<int>(param.bytes->size()) : 0);
  }
  constexpr int kBinary = 1;
  const std::vector<int> formats(params.size(), kBinary);
  const std::string& name = prepared(statement, types);
  return checked(PQexecPrepared(connection_.get(), name.c_str(), static_cast<int>(params.size()), values.data(),
                                lengths.data(), formats.data(), kBinary),
                 statement);
}

Session::Shape Session::shape(std::string_view statement, const std::vector<Type>& params) {
  const Result result = checked(PQdescribePrepared(connection_.get(), prepared(statement, params).c_str()), statement);
  Shape shape;
  for (int i = 0; i < PQnparams(result.get()); ++i)
    shape.params.push_back(static_cast<Type>(PQparamtype(result.get(), i)));
  for (int i = 0; i < result.columns(); ++i)
    shape.columns.push_back(std::string(PQfname(result.get(), i)) + " " +
                            name_of(static_cast<Type>(PQftype(result.get(), i))));
  return shape;
}

void Session::execute(const std::string& statement) {
  checked(PQexec(connection_.get(), statement.c_str()), statement);
}

int Session::notifications() {
  if (PQconsumeInput(connection_.get()) == 0)
    throw SqlError("08006", "the connection is lost: " + std::string(PQerrorMessage(connection_.get())));
  int count = 0;
  while (PGnotify* notification = PQnotifies(connection_.get())) {
    PQfreemem(notification);
    ++count;
  }
  return count;
}

}  // namespace client
