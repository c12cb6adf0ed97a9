// ResultSet: the rows of a set-returning function, in a tuplestore. The SQL functions fill it. It
// belongs to one function call.
#pragma once

#include <initializer_list>

#include "pg/guard.hpp"
#include "pg/statement.hpp"

namespace mq {

class ResultSet {
 public:
  // Sets the function call up to return a materialized set of its declared row type. Throws 0A000
  // if the caller cannot take one.
  explicit ResultSet(FunctionCallInfo fcinfo);
  // Adds a row of at most 32 columns.
  void add(std::initializer_list<Param> columns);

 private:
  Tuplestorestate* store_ = nullptr;
  TupleDesc descriptor_ = nullptr;
};

}  // namespace mq
