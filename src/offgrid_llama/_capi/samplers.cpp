// Chains of llama.cpp's samplers, and the two samplers that this extension adds to them.

#include "callbacks.h"
#include "guard.h"
#include "logits.h"
#include "og.h"

#include "llama.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

// Thrown by the two samplers below, through llama.cpp's C++ to og_sample, so that no sampler after them is applied.
struct NoToken {
    og_no_token reason;
};

const char * custom_name(const llama_sampler *) { return "custom"; }

void custom_accept(llama_sampler * sampler, llama_token token) { og_on_accept(sampler->ctx, token); }

void custom_apply(llama_sampler * sampler, llama_token_data_array * array) {
    const int32_t selected = og_on_apply(sampler->ctx, array->data, array->size);
    if (selected == OG_RAISED) {
        throw NoToken{OG_RAISED};
    }
    if (selected != OG_NOTHING_SELECTED) {
        array->selected = selected;
    }
    array->sorted = false;
}

void custom_reset(llama_sampler * sampler) { og_on_reset(sampler->ctx); }

const char * guard_name(const llama_sampler *) { return "guard"; }

// Given candidates without probabilities, llama.cpp's samplers select any of them, fail an assertion, or search forever.
void guard_apply(llama_sampler *, llama_token_data_array * array) {
    float largest = -INFINITY;
    bool finite = true;
    for (size_t i = 0; i < array->size; i++) {
        const float logit = array->data[i].logit;
        finite = finite && logit < INFINITY;  // false for NaN
        largest = logit > largest ? logit : largest;
    }
    if (!finite || largest == -INFINITY) {
        throw NoToken{OG_REFUSED};
    }
}

// The candidates of the chains of this thread. They are taken while a chain is applied, as a custom sampler may apply
// another chain.
thread_local std::vector<llama_token_data> candidates_of_thread;

struct BorrowedCandidates : std::vector<llama_token_data> {
    BorrowedCandidates() noexcept { swap(candidates_of_thread); }
    ~BorrowedCandidates() { swap(candidates_of_thread); }
    BorrowedCandidates(const BorrowedCandidates &) = delete;
    BorrowedCandidates & operator=(const BorrowedCandidates &) = delete;
};

// Samplers take finite numbers and -inf. A NaN is never chosen, as by og_argmax.
float usable(float logit) noexcept {
    if (logit <= og::MAX_LOGIT) {
        return logit;
    }
    return logit > og::MAX_LOGIT ? og::MAX_LOGIT : -INFINITY;
}

int32_t sample(llama_sampler * chain, const float * logits, int32_t n_vocab) {
    BorrowedCandidates candidates;
    candidates.resize(n_vocab);
    for (int32_t token = 0; token < n_vocab; token++) {
        candidates[token] = llama_token_data{token, usable(logits[token]), 0.0f};
    }
    llama_token_data_array array = {candidates.data(), candidates.size(), -1, false};
    llama_sampler_apply(chain, &array);
    if (array.selected < 0 || static_cast<size_t>(array.selected) >= array.size) {
        return OG_NOTHING_SELECTED;
    }
    const llama_token_data & selected = array.data[array.selected];
    if (!std::isfinite(selected.logit)) {
        return OG_REFUSED;  // a custom sampler selected it
    }
    llama_sampler_accept(chain, selected.id);
    return selected.id;
}

}  // namespace

struct llama_sampler_i og_custom_sampler = {
    /* .name              = */ custom_name,
    /* .accept            = */ custom_accept,
    /* .apply             = */ custom_apply,
    /* .reset             = */ custom_reset,
    /* .clone             = */ nullptr,  // Python clones it
    /* .free              = */ nullptr,  // and owns its context
    /* .backend_init      = */ nullptr,
    /* .backend_accept    = */ nullptr,
    /* .backend_apply     = */ nullptr,
    /* .backend_set_input = */ nullptr,
    /* .backend_reset     = */ nullptr,
    /* .copy_state        = */ nullptr,
};

struct llama_sampler_i og_logits_guard = {
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

// As llama_sampler_sample, which aborts where this returns an og_no_token.
int32_t og_sample(struct llama_sampler * chain, const float * logits, int32_t n_vocab) {
    return og::guarded_call("llama_sampler_apply", OG_THREW, [=]() -> int32_t {
        try {
            return sample(chain, logits, n_vocab);
        } catch (const NoToken & no_token) {
            return no_token.reason;
        }
    });
}

int32_t og_allows(struct llama_sampler * grammar, int32_t token) {
    return og::guarded_call("llama_sampler_apply", OG_THREW, [=]() -> int32_t {
        llama_token_data candidate = {token, 0.0f, 0.0f};
        llama_token_data_array array = {&candidate, 1, -1, false};
        llama_sampler_apply(grammar, &array);
        return array.data[0].logit != -INFINITY;
    });
}
