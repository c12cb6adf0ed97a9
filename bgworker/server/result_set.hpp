// The rows of a set-returning function, in a tuplestore.
#pragma once

#include <initializer_list>

#include "fence.hpp"
#include "spi.hpp"

namespace mq {

class ResultSet {
 public:
  // Sets the function call up to return a materialized set of its declared row type. Throws 0A000 where the
  // caller cannot take one.
  explicit ResultSet(FunctionCallInfo fcinfo);
  void add(std::initializer_list<Param> columns);

 private:
  Tuplestorestate* store_ = nullptr;
  TupleDesc descriptor_ = nullptr;
};

}  // namespace mq
