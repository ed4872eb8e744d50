// GGUF files: what is checked before a load, how an open file is handed to llama.cpp, and quantizing.

#include "callbacks.h"
#include "guard.h"
#include "og.h"

#include "ggml.h"
#include "gguf.h"
#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <fcntl.h>
#include <regex>
#include <stdexcept>
#include <stdio.h>
#include <string_view>
#include <unistd.h>
#include <unordered_set>

int64_t og_gguf_repeated(const struct gguf_context * ctx, int64_t key_id) {
    try {
        const size_t n = gguf_get_arr_n(ctx, key_id);
        std::unordered_set<std::string_view> seen(2 * n);
        for (size_t i = 0; i < n; i++) {
            const std::string_view text = gguf_get_arr_str(ctx, key_id, i);
            if (!text.empty() && !seen.insert(text).second) {
                return static_cast<int64_t>(i);
            }
        }
        return -1;
    } catch (...) {
        return -1;  // There is no memory. The load reports that, so the guard remembers nothing.
    }
}

FILE * og_file_open(int fd, int64_t position) {
    const int duplicate = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (duplicate < 0) {
        return nullptr;
    }
    FILE * file = fdopen(duplicate, "rb");
    if (file == nullptr) {
        close(duplicate);
        return nullptr;
    }
    if (fseeko(file, position, SEEK_SET) != 0) {
        fclose(file);
        return nullptr;
    }
    return file;
}

void og_file_close(FILE * file) { fclose(file); }

bool og_regex_compiles(const char * pattern) {
    return og::guarded_call("std::regex", [=] {
        static_cast<void>(std::regex(pattern));
        return true;
    });
}

namespace {
thread_local bool quantizing = false;
}

// llama_model_quantize cannot be cancelled. But it is C++ and catches exceptions, so throwing one ends it. It logs
// "size = " after each tensor, while none of its worker threads runs. ggml's own lines come through C frames, where
// nothing may be thrown.
void og_log(enum ggml_log_level level, const char * text, void * user_data) {
    og_on_log(level, text, user_data);
    if (quantizing && std::string_view(text).substr(0, 7) == "size = " && og_on_poll()) {
        quantizing = false;
        throw std::runtime_error("cancelled");
    }
}

void og_drop_log(enum ggml_log_level, const char *, void *) {}

uint32_t og_quantize(const char * fname_inp, const char * fname_out, const llama_model_quantize_params * params) {
    quantizing = true;
    const uint32_t code = og::guarded<llama_model_quantize>{"llama_model_quantize"}(fname_inp, fname_out, params);
    quantizing = false;
    return code;
}
