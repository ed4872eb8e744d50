// The guard: no C++ exception reaches a C or Python frame.
//
// llama.cpp is C++ behind a C header. A std::out_of_range or std::bad_alloc that left a function of llama.h would meet
// cffi's C frames and end the process. So each function of llama.cdef.h is called through guarded<function>, and each of
// our own that can throw runs its body in guarded_call. Both are noexcept: they catch, remember the exception for this
// thread, and return a value that no good call returns, where the type has one. ../native/check.py turns that into NativeError.
// SIGSEGV and hangs cannot be caught; the Python side refuses the arguments that lead to them. Nor can abort(), but for
// assertions of ggml that fail in a function of mtmd.cdef.h: see CatchAssertions.
#pragma once

#include <limits>
#include <type_traits>

namespace og {

// Remember the exception that is being handled, for og_caught_function and og_caught_what. For catch blocks only.
void remember_exception(const char * function) noexcept;

// The value that a guarded function returns in place of a result.
template <class R> constexpr R sentinel() noexcept {
    if constexpr (std::is_void_v<R>) {
        return;
    } else if constexpr (std::is_same_v<R, bool> || std::is_pointer_v<R> || std::is_class_v<R>) {
        return R{};
    } else if constexpr (std::is_floating_point_v<R>) {
        return std::numeric_limits<R>::quiet_NaN();
    } else if constexpr (std::is_enum_v<R>) {
        return static_cast<R>(-1);
    } else if constexpr (std::is_signed_v<R>) {
        return std::numeric_limits<R>::min();
    } else {
        return std::numeric_limits<R>::max();
    }
}

// Return what `body` returns. If it throws, remember that `function` threw, and return the sentinel.
template <class Body, class R = std::invoke_result_t<const Body &>>
R guarded_call(const char * function, const Body & body) noexcept {
    try {
        return body();
    } catch (...) {
        remember_exception(function);
    }
    return sentinel<R>();
}

// The same, with a value of its own for a body that throws.
template <class Body, class R = std::invoke_result_t<const Body &>>
R guarded_call(const char * function, std::common_type_t<R> failure, const Body & body) noexcept {
    try {
        return body();
    } catch (...) {
        remember_exception(function);
    }
    return failure;
}

// A function F of llama.h behind the guard: guarded<llama_decode>{"llama_decode"}(ctx, batch).
template <auto F> struct guarded {
    const char * name;

    template <class... A> auto operator()(A... arguments) const noexcept -> decltype(F(arguments...)) {
        return guarded_call(name, [&] { return F(arguments...); });
    }
};

// While one lives, an assertion of ggml that fails on this thread throws std::runtime_error with its text, unless it fails in
// a kernel. og_catch_assertions must have been called.
struct CatchAssertions {
    CatchAssertions() noexcept;
    ~CatchAssertions();
    CatchAssertions(const CatchAssertions &) = delete;
    CatchAssertions & operator=(const CatchAssertions &) = delete;
};

// A function of mtmd.h behind the guard, which also catches failed assertions.
template <auto F> struct guarded_mtmd {
    const char * name;

    template <class... A> auto operator()(A... arguments) const noexcept -> decltype(F(arguments...)) {
        const CatchAssertions caught;
        return guarded_call(name, [&] { return F(arguments...); });
    }
};

}  // namespace og
