// Fence: the one place where errors cross between the server and C++.
//
// The law: no ereport may jump over a C++ frame that has something to destroy, and no C++ exception may reach a
// C frame. So C++ code calls the server only through fence::call, and the server calls C++ code only through
// fence::entry or fence::guard.
//
//   call   runs a body of server calls. An ereport(ERROR) in it ends the body and is thrown as an mq::Error.
//          With Texts::kKept its texts are bounded as those in mq_failures are.
//          The body must own nothing: no local with a destructor, no throw; it runs between sigsetjmp and
//          longjmp.
//   entry  runs C++ code on behalf of a SQL function, and makes what it throws an ereport once all C++ frames
//          below it are gone.
//   guard  the same for a callback that returns nothing.
//
// An Error that left `call` says that the transaction (or subtransaction) has to be rolled back; whoever
// catches it does so or lets it pass.
#pragma once

#include <exception>
#include <memory>
#include <type_traits>
#include <utility>

#include "../error.hpp"
#include "postgres.hpp"

namespace mq::fence {

enum class Texts { kWhole, kKept };

namespace detail {

using Body = void (*)(void* argument) noexcept;
void run(Body body, void* argument, Texts texts);  // throws Error

// Copies an error into the server's memory, to be raised after the handler that caught it was left.
ErrorData* to_error_data(const Error& error);
ErrorData* to_error_data(const std::exception& error);
ErrorData* unknown_error();
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
void guard(F&& body) {
  entry(std::forward<F>(body));
}

}  // namespace mq::fence
