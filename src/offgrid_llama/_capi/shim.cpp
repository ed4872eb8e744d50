// The C++ half of the binding, and the preamble of the generated _llama.cpp.
//
// 1. The guard. llama.cpp is C++ behind a C header: a std::out_of_range or std::bad_alloc that leaves a function of
//    llama.h would meet cffi's C frames and end the process. Every bound function is called through guarded<f>, which
//    is noexcept: it catches, remembers what and where for this thread, and returns a sentinel that no good call gives
//    where the type has one. _check.py turns that into NativeError. abort(), SIGSEGV and hangs cannot be caught; the
//    noun files refuse the arguments that lead to them.
// 2. The loops that Python must not run for each token or each node of a graph.

#include "llama.h"

#include "ggml-backend.h"
#include "ggml-rpc.h"
#include "gguf.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <exception>
#include <fcntl.h>
#include <functional>
#include <limits>
#include <regex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <unistd.h>
#include <unordered_set>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

// Python; cffi defines them below
static bool og_on_poll(void);
static void og_on_log(enum ggml_log_level level, const char * text, void * user_data);
static int32_t og_on_apply(void * custom, struct llama_token_data * candidates, size_t size);
static void og_on_accept(void * custom, llama_token token);
static void og_on_reset(void * custom);

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

template <class R> R sentinel() noexcept {
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

template <auto F> struct guarded {
    const char * name;

    template <class... A> auto operator()(A... arguments) const noexcept -> decltype(F(arguments...)) {
        try {
            return F(arguments...);
        } catch (const std::exception & error) {
            remember(name, error.what());
        } catch (...) {
            remember(name, "an exception that is no std::exception");
        }
        return sentinel<decltype(F(arguments...))>();
    }
};

constexpr int64_t SIGNAL_POLL_MS = 100;  // each poll takes the GIL once

// A clock that is read between any two nodes of a graph, 100,000 times a second with a small model: the coarse one costs
// a few nanoseconds, and is right to some milliseconds.
int64_t coarse_ms() noexcept {
#if defined(CLOCK_MONOTONIC_COARSE)
    timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
#else
    return llama_time_us() / 1000;
#endif
}

}  // namespace

static const char * og_caught_function(void) { return caught.function; }
static const char * og_caught_what(void) { return caught.what.c_str(); }
static void og_caught_clear(void) { caught.function = nullptr; }

typedef struct og_cancel {
    int32_t requested;
    int32_t poll_signals;
    int64_t next_poll_ms;
    int32_t deaf;
} og_cancel;

// Called by ggml between the nodes of a graph, on the thread that called llama_decode, without the GIL.
static bool og_should_abort(void * user_data) noexcept {
    auto * cancel = static_cast<og_cancel *>(user_data);
    if (cancel->deaf > 0) {
        cancel->deaf--;
        return false;
    }
    if (__atomic_load_n(&cancel->requested, __ATOMIC_RELAXED) != 0) {
        return true;
    }
    if (cancel->poll_signals == 0) {
        return false;
    }
    const int64_t now = coarse_ms();
    if (now < cancel->next_poll_ms) {
        return false;
    }
    cancel->next_poll_ms = now + SIGNAL_POLL_MS;
    return og_on_poll();
}

static void og_release_threads(void) noexcept {
#if defined(_OPENMP) && _OPENMP >= 201811
    omp_pause_resource_all(omp_pause_soft);
#endif
}

static void og_batch_put(
        struct llama_batch * batch, int32_t row, llama_token token, llama_pos pos, llama_seq_id seq_id,
        bool logits) noexcept {
    batch->token[row] = token;
    batch->pos[row] = pos;
    batch->seq_id[row][0] = seq_id;
    batch->logits[row] = logits;
    batch->n_tokens = row + 1;
}

#define OG_NOTHING_SELECTED (-1)
#define OG_REFUSED (-2)
#define OG_THREW (-3)
#define OG_RAISED (-4)

namespace {

struct Raised {};  // by Python; _callbacks.py has the exception

const char * custom_name(const llama_sampler *) { return "custom"; }

void custom_accept(llama_sampler * sampler, llama_token token) { og_on_accept(sampler->ctx, token); }

void custom_apply(llama_sampler * sampler, llama_token_data_array * array) {
    const int32_t selected = og_on_apply(sampler->ctx, array->data, array->size);
    if (selected == OG_RAISED) {
        throw Raised{};  // through llama.cpp's C++ to og_sample, so that no sampler after this one is applied
    }
    if (selected != OG_NOTHING_SELECTED) {
        array->selected = selected;
    }
    array->sorted = false;
}

void custom_reset(llama_sampler * sampler) { og_on_reset(sampler->ctx); }

// What chains of this thread have to write their candidates to; taken while one is at it, as a custom sampler may
// apply another chain.
thread_local std::vector<llama_token_data> spare;

struct Candidates : std::vector<llama_token_data> {
    Candidates() noexcept { swap(spare); }
    ~Candidates() { swap(spare); }
};

}  // namespace

static struct llama_sampler_i og_custom = {
    /* .name              = */ custom_name,
    /* .accept            = */ custom_accept,
    /* .apply             = */ custom_apply,
    /* .reset             = */ custom_reset,
    /* .clone             = */ nullptr,  // Python does it
    /* .free              = */ nullptr,  // and owns what there is to free
    /* .backend_init      = */ nullptr,
    /* .backend_accept    = */ nullptr,
    /* .backend_apply     = */ nullptr,
    /* .backend_set_input = */ nullptr,
    /* .backend_reset     = */ nullptr,
    /* .copy_state        = */ nullptr,
};

namespace {

constexpr float LARGEST = 1e30f;  // what larger logits count as, with room to divide by a temperature

struct NothingLeft {};

const char * guard_name(const llama_sampler *) { return "guard"; }

// Of candidates without probabilities llama.cpp's samplers choose any, or assert.
void guard_apply(llama_sampler *, llama_token_data_array * array) {
    float largest = -INFINITY;
    bool finite = true;
    for (size_t i = 0; i < array->size; i++) {
        const float logit = array->data[i].logit;
        finite = finite && logit < INFINITY;  // false for NaN
        largest = logit > largest ? logit : largest;
    }
    if (!finite || largest == -INFINITY) {
        throw NothingLeft{};  // as custom_apply does; so what selects has not begun a step that has no end
    }
}

}  // namespace

static struct llama_sampler_i og_guard = {
    /* .name              = */ guard_name,
    /* .accept            = */ nullptr,
    /* .apply             = */ guard_apply,
    /* .reset             = */ nullptr,
    /* .clone             = */ nullptr,
    /* .free              = */ nullptr,
    /* .backend_init      = */ nullptr,
    /* .backend_accept    = */ nullptr,
    /* .backend_apply     = */ nullptr,
    /* .backend_set_input = */ nullptr,
    /* .backend_reset     = */ nullptr,
    /* .copy_state        = */ nullptr,
};

// What llama_sampler_sample does, except that it aborts where this returns a code.
static int32_t og_sample(struct llama_sampler * chain, const float * logits, int32_t n_vocab) noexcept {
    try {
        Candidates candidates;
        candidates.resize(n_vocab);
        for (int32_t token = 0; token < n_vocab; token++) {
            // Samplers take finite numbers and -inf. What is no number is never chosen, as by og_argmax.
            const float logit = logits[token];
            candidates[token] = llama_token_data{token, logit <= LARGEST ? logit : logit > LARGEST ? LARGEST : -INFINITY, 0.0f};
        }
        llama_token_data_array array = {candidates.data(), candidates.size(), -1, false};
        llama_sampler_apply(chain, &array);
        if (array.selected < 0 || static_cast<size_t>(array.selected) >= array.size) {
            return OG_NOTHING_SELECTED;
        }
        const llama_token_data & selected = array.data[array.selected];
        if (!std::isfinite(selected.logit)) {
            return OG_REFUSED;  // that of a custom sampler
        }
        llama_sampler_accept(chain, selected.id);
        return selected.id;
    } catch (const Raised &) {
        return OG_RAISED;
    } catch (const NothingLeft &) {
        return OG_REFUSED;
    } catch (const std::exception & error) {
        remember("llama_sampler_apply", error.what());
    } catch (...) {
        remember("llama_sampler_apply", "an exception that is no std::exception");
    }
    return OG_THREW;
}

static int32_t og_allows(struct llama_sampler * grammar, int32_t token) noexcept {
    try {
        llama_token_data candidate = {token, 0.0f, 0.0f};
        llama_token_data_array array = {&candidate, 1, -1, false};
        llama_sampler_apply(grammar, &array);
        return array.data[0].logit != -INFINITY;
    } catch (const std::exception & error) {
        remember("llama_sampler_apply", error.what());
    } catch (...) {
        remember("llama_sampler_apply", "an exception that is no std::exception");
    }
    return OG_THREW;
}

static int32_t og_pieces(
        const struct llama_vocab * vocab, char * buffer, int32_t size, int32_t * ends, int32_t * attrs) noexcept {
    try {
        int64_t used = 0;
        const int32_t n_vocab = llama_vocab_n_tokens(vocab);
        for (int32_t token = 0; token < n_vocab; token++) {
            const int32_t begin = static_cast<int32_t>(std::min<int64_t>(used, size));
            const int32_t length = llama_token_to_piece(vocab, token, buffer + begin, size - begin, 0, true);
            used += length < 0 ? -static_cast<int64_t>(length) : length;
            if (used > INT32_MAX) {
                return INT32_MIN;
            }
            ends[token] = static_cast<int32_t>(used);
            attrs[token] = llama_vocab_get_attr(vocab, token);
        }
        return static_cast<int32_t>(used <= size ? used : -used);
    } catch (const std::exception & error) {
        remember("llama_token_to_piece", error.what());
    } catch (...) {
        remember("llama_token_to_piece", "an exception that is no std::exception");
    }
    return INT32_MIN;
}

#define OG_ENDS 0
#define OG_HAS 1
#define OG_SHORT 2

static int32_t og_find_tokens(
        const struct llama_vocab * vocab, int32_t what, int32_t argument, int32_t * tokens) noexcept {
    try {
        int32_t n = 0;
        const int32_t n_vocab = llama_vocab_n_tokens(vocab);
        for (int32_t token = 0; token < n_vocab; token++) {
            const bool found = what == OG_ENDS ? llama_vocab_is_eog(vocab, token)
                : what == OG_HAS ? (llama_vocab_get_attr(vocab, token) & argument) != 0
                : strlen(llama_vocab_get_text(vocab, token)) <= static_cast<size_t>(argument);
            if (found) {
                tokens[n++] = token;
            }
        }
        return n;
    } catch (const std::exception & error) {
        remember("llama_vocab_get_attr", error.what());
    } catch (...) {
        remember("llama_vocab_get_attr", "an exception that is no std::exception");
    }
    return INT32_MIN;
}

static int64_t og_gguf_repeated(const struct gguf_context * ctx, int64_t key_id) noexcept {
    try {
        const size_t n = gguf_get_arr_n(ctx, key_id);
        std::unordered_set<std::string_view> seen(2 * n);
        for (size_t i = 0; i < n; i++) {
            const std::string_view text = gguf_get_arr_str(ctx, key_id, i);
            if (!text.empty() && !seen.insert(text).second) {
                return static_cast<int64_t>(i);
            }
        }
    } catch (...) {  // no memory: the load will say so
    }
    return -1;
}

static FILE * og_file_open(int fd, int64_t position) noexcept {
    const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    FILE * file = own < 0 ? nullptr : fdopen(own, "rb");
    if (file == nullptr) {
        if (own >= 0) {
            close(own);
        }
        return nullptr;
    }
    if (fseeko(file, position, SEEK_SET) != 0) {
        fclose(file);
        return nullptr;
    }
    return file;
}

static void og_file_close(FILE * file) noexcept { fclose(file); }

static bool og_regex_compiles(const char * pattern) noexcept {
    try {
        const std::regex compiled(pattern);
        return true;
    } catch (const std::exception & error) {
        remember("std::regex", error.what());
    }
    return false;
}

namespace {
thread_local bool quantizing = false;
}

// The quantizer cannot be cancelled, but it is C++, safe to leave by an exception (llama_model_quantize catches it), and
// logs "size = " after each tensor, when no worker of its own is running. ggml's own lines come through C: never those.
static void og_log(enum ggml_log_level level, const char * text, void * user_data) {
    og_on_log(level, text, user_data);
    if (quantizing && std::string_view(text).substr(0, 7) == "size = " && og_on_poll()) {
        quantizing = false;
        throw std::runtime_error("cancelled");
    }
}

static uint32_t og_quantize(
        const char * fname_inp, const char * fname_out, const llama_model_quantize_params * params) noexcept {
    quantizing = true;
    const uint32_t code = guarded<llama_model_quantize>{"llama_model_quantize"}(fname_inp, fname_out, params);
    quantizing = false;
    return code;
}

static void og_drop_log(enum ggml_log_level, const char *, void *) noexcept {}

static const char * og_build_commit(void) { return OG_BUILD_COMMIT; }
static const char * og_build_compiler(void) { return OG_BUILD_COMPILER; }
static const char * og_build_flags(void) { return OG_BUILD_FLAGS; }
