// Error: what goes wrong, in the server's terms.
//
// Everything that the core throws is an Error; server/fence.cpp makes them of server errors and server errors
// of them. SQLSTATEs are the five letters of the standard and of the server's errcodes.txt.
#pragma once

#include <exception>
#include <string>
#include <string_view>
#include <utility>

namespace mq {

struct Error : std::exception {
  Error(std::string state, std::string text, std::string more = {}, std::string advice = {})
      : sqlstate(std::move(state)), message(std::move(text)), detail(std::move(more)), hint(std::move(advice)) {}

  const char* what() const noexcept override { return message.c_str(); }

  // Another run at once may succeed: serialization_failure, deadlock_detected.
  bool is_conflict() const { return sqlstate == "40001" || sqlstate == "40P01"; }

  // Something of that name is there: a cursor, a prepared statement, a schema, a table, a type or the like, a function.
  bool is_duplicate_object() const {
    for (const std::string_view state : {"42P03", "42P05", "42P06", "42P07", "42710", "42723"})
      if (sqlstate == state) return true;
    return false;
  }

  // It may have met what another call of its transaction left behind: an object of that name, an open cursor, pending
  // events of deferred triggers (55006).
  bool is_of_company() const { return is_duplicate_object() || sqlstate == "55006"; }

  std::string sqlstate;
  std::string message;
  std::string detail;
  std::string hint;
  // What a constraint's violation, say, was about, as the server named it; empty where it did not.
  std::string schema;
  std::string table;
  std::string column;
  std::string datatype;
  std::string constraint;
  std::string context;  // the call stack that the server collected; empty if it has not seen the error yet
  // The server itself stopped what ran, for a signal or a timer; not raised by the code that ran.
  bool interrupt = false;
};

}  // namespace mq
