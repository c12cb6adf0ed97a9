// Error: what goes wrong, in the server's terms. A value without other state.
//
// Everything that mq's C++ code throws is an Error. pg/guard.cpp makes Errors of server errors, and
// server errors of Errors. SQLSTATEs are the five characters of the standard and of errcodes.txt.
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

  // The same may succeed at once if it runs again: serialization_failure, deadlock_detected.
  bool is_conflict() const { return sqlstate == "40001" || sqlstate == "40P01"; }

  // An object of that name exists: a cursor, a prepared statement, a schema, a table, a type or the
  // like, a function.
  bool is_duplicate_object() const {
    for (const std::string_view state : {"42P03", "42P05", "42P06", "42P07", "42710", "42723"})
      if (sqlstate == state) return true;
    return false;
  }

  // The error may come from what another call of its transaction left behind: an object of that
  // name, an open cursor or pending events of deferred triggers (55006).
  bool is_of_sharing() const { return is_duplicate_object() || sqlstate == "55006"; }

  std::string sqlstate;
  std::string message;
  std::string detail;
  std::string hint;
  // The object that the error is about (a violated constraint, say), as the server named it; empty:
  // it did not.
  std::string schema;
  std::string table;
  std::string column;
  std::string datatype;
  std::string constraint;
  std::string context;  // the server's call stack; empty: the server has not seen the error yet
  // The server itself stopped the code that ran, for a signal or a timer: no error of that code.
  bool interrupt = false;
};

}  // namespace mq
