// Guard: the one place where errors cross between the server and C++. No state.
//
// The error-handling rule:
//   1. No ereport may jump over a C++ frame that has something to destroy.
//   2. No C++ exception may reach a C frame.
// So C++ code calls the server only through guard::call, and the server calls C++ code only through
// guard::entry or guard::callback.
//
//   call      Runs a body of server calls. An ereport(ERROR) in it ends the body and is thrown as
//             an Error. Texts::kKept limits the Error's texts to the length that mq_failures keeps.
//             The body must own nothing, since it runs between sigsetjmp and longjmp: it has no
//             local with a destructor, and throws nothing.
//   entry     Runs C++ code for a SQL function. What that throws becomes an ereport, once all C++
//             frames below are gone.
//   callback  Does the same for a callback that returns nothing.
//
// After an Error from `call` the transaction (or subtransaction) has to be rolled back. The code
// that catches the Error does that, or throws it on.
#pragma once

#include <exception>
#include <memory>
#include <type_traits>
#include <utility>

#include "pg/error.hpp"
#include "pg/postgres.hpp"

namespace mq::guard {

enum class Texts { kWhole, kKept };

namespace detail {

using Body = void (*)(void* argument) noexcept;
void run(Body body, void* argument, Texts texts);  // throws Error

// Copies an error into the server's memory. It is raised after the catch block has been left.
ErrorData* to_error_data(const Error& error);
ErrorData* to_error_data(const std::exception& error);
ErrorData* unknown_error();
// `has_context`: the error brings its call stack, so none is added.
[[noreturn]] void raise(ErrorData* data, bool has_context);

}  // namespace detail

template <class F>
auto call(F&& body, Texts texts = Texts::kWhole) -> std::invoke_result_t<F&> {
  using Result = std::invoke_result_t<F&>;
  if constexpr (std::is_void_v<Result>) {
    detail::run([](void* argument) noexcept { (*static_cast<std::remove_reference_t<F>*>(argument))(); },
                std::addressof(body), texts);
  } else {
    static_assert(std::is_trivially_copyable_v<Result>, "a longjmp runs no destructors");
    struct Context {
      std::remove_reference_t<F>* body;
      Result result;
    } context{std::addressof(body), Result{}};
    detail::run(
        [](void* argument) noexcept {
          auto* c = static_cast<Context*>(argument);
          c->result = (*c->body)();
        },
        &context, texts);
    return context.result;
  }
}

template <class F>
auto entry(F&& body) -> std::invoke_result_t<F&> {
  ErrorData* data = nullptr;
  bool has_context = false;
  try {
    return body();
  } catch (const Error& error) {
    data = detail::to_error_data(error);
    has_context = !error.context.empty();
  } catch (const std::exception& error) {
    data = detail::to_error_data(error);
  } catch (...) {
    data = detail::unknown_error();
  }
  detail::raise(data, has_context);
}

template <class F>
void callback(F&& body) {
  entry(std::forward<F>(body));
}

}  // namespace mq::guard
