// Failed assertions of ggml, thrown where the guard catches them. See guard.h.
//
// libmtmd trusts a projector's file: an odd number in it fails one of some two hundred assertions while the file is loaded,
// or while a picture is prepared, and ggml_abort ends the process. It calls a callback first, and a callback may throw.
// That is safe on the thread that made the call, in code that computes nothing. A kernel runs on several threads, which
// wait for each other: an assertion that fails there ends the process, as before.

#include "guard.h"
#include "og.h"

#include <cstdio>
#include <stdexcept>
#include <string_view>

namespace {

thread_local int catching = 0;
ggml_abort_callback_t before = nullptr;

// Whether an assertion stands in code that reads files, prepares data or builds graphs, by its message: "FILE:LINE: TEXT".
bool computes_nothing(std::string_view message) {
    const std::string_view path = message.substr(0, message.find(": "));
    if (path.find("mtmd") != path.npos) {
        return true;
    }
    const std::string_view name = path.substr(path.find_last_of("/\\") + 1);
    for (const char * known : {"ggml.c:", "ggml-alloc.c:", "ggml-backend.cpp:", "gguf.cpp:"}) {
        if (name.substr(0, std::string_view(known).size()) == known) {
            return true;
        }
    }
    return false;
}

void on_abort(const char * message) {
    if (catching > 0 && computes_nothing(message)) {
        throw std::runtime_error(message);
    }
    if (before) {
        before(message);
    } else {
        std::fprintf(stderr, "%s\n", message);
    }
}

}  // namespace

og::CatchAssertions::CatchAssertions() noexcept { ++catching; }
og::CatchAssertions::~CatchAssertions() { --catching; }

void og_catch_assertions() {
    const ggml_abort_callback_t current = ggml_set_abort_callback(on_abort);
    if (current != on_abort) {
        before = current;
    }
}
