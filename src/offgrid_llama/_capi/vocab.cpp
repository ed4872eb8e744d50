// Loops over the tokens of a vocabulary.

#include "guard.h"
#include "og.h"

#include "llama.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

bool matches(const llama_vocab * vocab, llama_token token, int32_t rule, int32_t argument) {
    switch (rule) {
        case OG_FIND_EOG: return llama_vocab_is_eog(vocab, token);
        case OG_FIND_WITH_ATTR: return (llama_vocab_get_attr(vocab, token) & argument) != 0;
        default: return std::strlen(llama_vocab_get_text(vocab, token)) <= static_cast<size_t>(argument);
    }
}

}  // namespace

int32_t og_pieces(const struct llama_vocab * vocab, char * buffer, int32_t size, int32_t * ends, int32_t * attrs) {
    return og::guarded_call("llama_token_to_piece", [=]() -> int32_t {
        int64_t used = 0;
        const int32_t n_vocab = llama_vocab_n_tokens(vocab);
        for (int32_t token = 0; token < n_vocab; token++) {
            const auto begin = static_cast<int32_t>(std::min<int64_t>(used, size));
            const int32_t length = llama_token_to_piece(vocab, token, buffer + begin, size - begin, 0, true);
            used += length < 0 ? -static_cast<int64_t>(length) : length;
            if (used > INT32_MAX) {
                return INT32_MIN;
            }
            ends[token] = static_cast<int32_t>(used);
            attrs[token] = llama_vocab_get_attr(vocab, token);
        }
        return static_cast<int32_t>(used <= size ? used : -used);
    });
}

int32_t og_find_tokens(const struct llama_vocab * vocab, int32_t rule, int32_t argument, int32_t * tokens) {
    return og::guarded_call("llama_vocab_get_attr", [=] {
        int32_t n = 0;
        const int32_t n_vocab = llama_vocab_n_tokens(vocab);
        for (int32_t token = 0; token < n_vocab; token++) {
            if (matches(vocab, token, rule, argument)) {
                tokens[n++] = token;
            }
        }
        return n;
    });
}
