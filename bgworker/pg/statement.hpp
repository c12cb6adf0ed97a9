// Statements through SPI: prepared once in a process, with typed parameters and the latest
// snapshot. Every file that runs SQL of mq uses them. The plans are this process's.
//
// A Statement runs inside an SpiConnection. Its result lives until the connection is closed, or
// until it is freed by hand.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pg/postgres.hpp"
#include "pg/types.hpp"

extern "C" {
#include "executor/spi.h"
}

namespace mq {

// An SPI connection for a scope. It must be left before the transaction ends. After a rollback the
// server has closed the connection already: forget() says so.
class SpiConnection {
 public:
  explicit SpiConnection(bool nonatomic = false);
  ~SpiConnection();
  SpiConnection(const SpiConnection&) = delete;
  SpiConnection& operator=(const SpiConnection&) = delete;
  void forget() { open_ = false; }
  void finish();

 private:
  bool open_ = true;
};

// A parameter; NULL by default construction.
struct Param {
  Param() = default;
  Param(Datum d) : value(d), null(false) {}  // NOLINT: implicit on purpose
  Datum value = 0;
  bool null = true;
};

// The result of a statement. Rows are counted from 0.
class Rows {
 public:
  Rows() = default;
  Rows(SPITupleTable* table, std::uint64_t count) : table_(table), count_(count) {}

  std::size_t size() const { return static_cast<std::size_t>(count_); }
  bool empty() const { return count_ == 0; }
  HeapTuple tuple(std::size_t row) const { return table_->vals[row]; }
  TupleDesc descriptor() const { return table_->tupdesc; }
  // Columns are counted from 1, as in SPI.
  Datum get(std::size_t row, int column, bool& null) const {
    return SPI_getbinval(table_->vals[row], table_->tupdesc, column, &null);
  }
  Datum get(std::size_t row, int column) const {
    bool null = false;
    return get(row, column, null);
  }
  bool is_null(std::size_t row, int column) const {
    bool null = false;
    get(row, column, null);
    return null;
  }

 private:
  SPITupleTable* table_ = nullptr;
  std::uint64_t count_ = 0;
};

// The text may hold
//   $S   the extension's schema, quoted
//   $H   the head predicate: the message `m` may be the first of its channel to be delivered. The
//        partial indexes have the same condition, and one on the priority
//   $N   the id that after_message_id has in the head of an ordered channel
//   $L   the strength of a claim's row locks (row_locks.hpp)
//
// Each text has one static Statement, which owns its plan for the life of the process. It prepares
// a new plan if Extension::generation() has grown, or if $L has another strength.
class Statement {
 public:
  Statement(const char* text, std::initializer_list<Oid> types)
      : text_(text),
        locks_(std::string_view(text).find("$L") != std::string_view::npos),
        count_(static_cast<int>(types.size())) {
    std::copy(types.begin(), types.end(), types_.begin());
  }

  // Runs with a fresh snapshot at every isolation level, or with `snapshot`. Throws Error.
  Rows run(std::initializer_list<Param> params, Snapshot snapshot = nullptr) {
    return run(std::span(params.begin(), params.size()), snapshot);
  }
  Rows run(std::span<const Param> params, Snapshot snapshot = nullptr);

  // For the ExecutorStart hook: whether the statement that starts is mq's own. True once for each
  // run(): statements that its triggers run are not.
  static bool take_start();

 private:
  void prepare();

  static constexpr std::size_t kMostParams = 24;

  const char* text_;
  bool locks_;  // the text has $L
  std::array<Oid, kMostParams> types_{};
  int count_;
  SPIPlanPtr plan_ = nullptr;
  std::uint64_t generation_ = 0;
  bool avoiding_ = false;  // row_locks::avoiding() when the plan was made
};

// A view into a text or bytea datum. A value that is compressed or out of line is detoasted into
// the current memory context.
std::string_view text_view(Datum datum);
Datum text_datum(std::string_view text);
Datum uuid_datum(const Uuid& id);  // palloc'ed
Datum uuid_array(std::span<const Uuid> ids);
Uuid uuid_of(Datum datum);
Datum interval_datum(Micros micros);  // days and months zero
// Days count as 24 hours and months as 30 days, as for a comparison of intervals. A result out of
// range becomes the least or the greatest int64.
Micros micros_of_interval(Datum interval);

// An array for a parameter of unnest().
class ArrayParam {
 public:
  explicit ArrayParam(Oid type, std::size_t expected = 0);
  void add(Datum value) { add(Param(value)); }
  void add(Param param) {
    values_.push_back(param.value);
    nulls_.push_back(param.null ? 1 : 0);
  }
  Datum datum() const;  // palloc'ed

 private:
  Oid type_;
  std::vector<Datum> values_;
  std::vector<char> nulls_;
};

}  // namespace mq
