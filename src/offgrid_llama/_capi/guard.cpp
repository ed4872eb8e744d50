// The last exception that the guard has caught on each thread. See guard.h.

#include "guard.h"

#include "og.h"

#include <exception>
#include <string>

namespace {

struct Caught {
    const char * function = nullptr;
    std::string what;
};

thread_local Caught caught;

void remember(const char * function, const char * what) noexcept {
    caught.function = function;
    try {
        caught.what = what;
    } catch (...) {
        caught.what.clear();  // no memory left even for the message
    }
}

}  // namespace

void og::remember_exception(const char * function) noexcept {
    try {
        throw;
    } catch (const std::exception & error) {
        remember(function, error.what());
    } catch (...) {
        remember(function, "an exception that is no std::exception");
    }
}

const char * og_caught_function() { return caught.function; }
const char * og_caught_what() { return caught.what.c_str(); }
void og_caught_clear() { caught.function = nullptr; }
