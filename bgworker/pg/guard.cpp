#include "pg/guard.hpp"

#include <new>
#include <string>

#include "pg/kept.hpp"

namespace mq::guard::detail {

namespace {

std::string text(const char* string) {
  return string != nullptr ? string : "";
}

char* copy(const std::string& string) {
  if (string.empty()) return nullptr;
  // Must not raise an error: this runs while a C++ exception is being handled.
  auto* bytes = static_cast<char*>(MemoryContextAllocExtended(ErrorContext, string.size() + 1, MCXT_ALLOC_NO_OOM));
  if (bytes != nullptr) memcpy(bytes, string.c_str(), string.size() + 1);
  return bytes;
}

ErrorData out_of_memory;  // raised when there is no memory for more; has no destructor

ErrorData* blank(const char* sqlstate) {
  auto* data = static_cast<ErrorData*>(
      MemoryContextAllocExtended(ErrorContext, sizeof(ErrorData), MCXT_ALLOC_NO_OOM | MCXT_ALLOC_ZERO));
  if (data == nullptr) {
    data = &out_of_memory;
    *data = ErrorData{};
    sqlstate = "53200";
  }
  data->elevel = ERROR;
  data->output_to_server = true;
  data->output_to_client = true;
  data->assoc_context = ErrorContext;
  data->sqlerrcode = MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2], sqlstate[3], sqlstate[4]);
  return data;
}

// Its texts are so short that they need no memory of their own.
Error no_memory() {
  return {"53200", "out of memory"};
}

Error take(ErrorData* data, Texts texts) try {
  const auto take_text = texts == Texts::kKept
                             ? [](const char* string) { return kept(string != nullptr ? string : ""); }
                             : [](const char* string) { return text(string); };
  Error error(unpack_sql_state(data->sqlerrcode), take_text(data->message), take_text(data->detail),
              take_text(data->hint));
  error.schema = text(data->schema_name);
  error.table = text(data->table_name);
  error.column = text(data->column_name);
  error.datatype = text(data->datatype_name);
  error.constraint = text(data->constraint_name);
  error.context = take_text(data->context);
  // Only ProcessInterrupts() stops code that runs. A handler's own query_canceled does not come
  // from it.
  error.interrupt = data->funcname != nullptr && strcmp(data->funcname, "ProcessInterrupts") == 0;
  FreeErrorData(data);
  return error;
} catch (const std::bad_alloc&) {
  FreeErrorData(data);
  return no_memory();
}

// Takes the error that was caught off the server's error stack. Returns nullptr if there is no
// memory for a copy: another ereport would jump over the frames of the caller.
ErrorData* take_error() {
  ErrorData* volatile copy = nullptr;
  PG_TRY();
  { copy = CopyErrorData(); }
  PG_CATCH();
  {}
  PG_END_TRY();
  FlushErrorState();
  return copy;
}

}  // namespace

void run(Body body, void* argument, Texts texts) {
  ErrorData* volatile caught = nullptr;
  volatile bool failed = false;
  const MemoryContext before = CurrentMemoryContext;
  // The server resets these when it raises an error, since its own error handling releases the
  // locks that held interrupts off. Here C++ frames still hold their locks, and release them on
  // their way out.
  const uint32 interrupts_held = InterruptHoldoffCount;
  const uint32 cancels_held = QueryCancelHoldoffCount;
  PG_TRY();
  { body(argument); }
  PG_CATCH();
  {
    MemoryContextSwitchTo(before);
    caught = take_error();
    MemoryContextSwitchTo(before);
    failed = true;
    InterruptHoldoffCount = interrupts_held;
    QueryCancelHoldoffCount = cancels_held;
  }
  PG_END_TRY();
  if (!failed) return;

  throw caught != nullptr ? take(caught, texts) : no_memory();
}

ErrorData* to_error_data(const Error& error) {
  const bool well_formed = error.sqlstate.size() == 5;
  ErrorData* data = blank(well_formed ? error.sqlstate.c_str() : "XX000");
  data->message = copy(error.message);
  data->detail = copy(error.detail);
  data->hint = copy(error.hint);
  data->schema_name = copy(error.schema);
  data->table_name = copy(error.table);
  data->column_name = copy(error.column);
  data->datatype_name = copy(error.datatype);
  data->constraint_name = copy(error.constraint);
  data->context = copy(error.context);
  return data;
}

ErrorData* to_error_data(const std::exception& error) {
  const bool memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
  ErrorData* data = blank(memory ? "53200" : "XX000");
  data->message = copy(memory ? "out of memory" : error.what());
  return data;
}

ErrorData* unknown_error() {
  ErrorData* data = blank("XX000");
  data->message = copy("unknown C++ exception");
  return data;
}

void raise(ErrorData* data, bool has_context) {
  // An error that the server has raised before brings its context. Others get theirs here.
  if (has_context) ReThrowError(data);
  ThrowErrorData(data);
  pg_unreachable();
}

}  // namespace mq::guard::detail
