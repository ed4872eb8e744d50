// One call without the GIL that does the engine's work for each token: decode, sample all rows, and copy the pieces. It
// repeats that with the sampled tokens, if the caller would only wait for the GIL in between.

#include "fast_sampling.h"
#include "guard.h"
#include "og.h"
#include "thread_team.h"

#include "llama.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace {

int64_t now_ns() noexcept {  // the clock of time.perf_counter_ns()
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class StepLoop {
public:
    StepLoop(llama_context * ctx, llama_batch & batch, og_step & step)
        : ctx(ctx), batch(batch), step(step), vocab(llama_model_get_vocab(llama_get_model(ctx))),
          n_vocab(llama_vocab_n_tokens(vocab)) {}

    // Make the steps, and return what llama_decode returned last.
    int32_t run() {
        og::assemble_team(ctx, batch.n_tokens);
        int64_t begin = now_ns();
        while (true) {
            const int32_t code = llama_decode(ctx, batch);
            if (code != 0) {
                return code;
            }
            llama_synchronize(ctx);
            forget_padding();
            const int64_t decoded = now_ns();
            step.decode_ns += decoded - begin;
            bool all = step.n_groups > 0;
            for (int32_t i = 0; i < step.n_groups; i++) {
                all = sample_group(step.groups[i]) && all;
            }
            step.n_steps_done++;
            begin = now_ns();
            if (!all || step.n_steps_done >= step.max_steps || begin >= step.deadline_ns ||
                __atomic_load_n(&step.stop_requested, __ATOMIC_RELAXED) != 0) {
                return 0;
            }
            advance();
        }
    }

    // Copy the pieces of the tokens, and put the samplers' pointers back.
    void finish() noexcept {
        int32_t used = 0;
        for (int32_t i = 0; i < step.n_groups; i++) {
            const og_group & group = step.groups[i];
            if (group.sampler != nullptr && group.sampler->n_top > 0) {
                group.sampler->top_tokens -= static_cast<ptrdiff_t>(group.n_tokens) * group.sampler->n_top;
                group.sampler->top_logprobs -= static_cast<ptrdiff_t>(group.n_tokens) * group.sampler->n_top;
            }
            for (int32_t k = 0; k < group.n_tokens; k++) {
                const int32_t at = i * step.group_width + k;
                const int32_t length =
                    llama_token_to_piece(vocab, step.tokens[at], step.pieces + used, step.pieces_size - used, 0, false);
                used += length > 0 ? length : 0;
                step.piece_ends[at] = length < 0 ? -1 : used;  // -1: no room
            }
        }
    }

private:
    llama_context * ctx;
    llama_batch & batch;
    og_step & step;
    const llama_vocab * vocab;
    int32_t n_vocab;

    void forget(int32_t row) { llama_memory_seq_rm(llama_get_memory(ctx), batch.seq_id[row][0], batch.pos[row], -1); }

    void forget_padding() {
        for (int32_t i = 0; i < step.n_padding_rows; i++) {
            forget(step.padding_rows[i]);
        }
    }

    // Where the outputs of a group begin.
    ptrdiff_t outputs_of(const og_group & group) const noexcept { return (&group - step.groups) * step.group_width; }

    // Sample one token for a group, from the row that is `index` rows behind its first.
    int32_t sample(og_group & group, int32_t index) {
        if (group.sampler == nullptr) {
            return og_sample(group.chain, llama_get_logits_ith(ctx, group.row + index), n_vocab);
        }
        og_fast_sampler & sampler = *group.sampler;
        if (group.forced_tokens != nullptr && group.forced_tokens[index] >= 0) {  // no choice, and so no number to draw
            og::keep_recent(sampler, group.forced_tokens[index]);
            return group.forced_tokens[index];
        }
        float * logits = llama_get_logits_ith(ctx, group.row + index);
        const uint32_t * mask = sampler.mask;
        if (group.row_masks != nullptr && index > 0) {
            sampler.mask = group.row_masks + static_cast<size_t>(index - 1) * ((n_vocab + 31) / 32);
        }
        const int32_t token = og_fast_sample(&sampler, logits, n_vocab);
        sampler.mask = mask;
        if (token >= 0 && sampler.n_top >= 0) {
            step.logprobs[outputs_of(group) + group.n_tokens] = sampler.logprob;
            sampler.top_tokens += sampler.n_top;  // the next token's come after them; finish() goes back
            sampler.top_logprobs += sampler.n_top;
        }
        return token;
    }

    // Sample from the rows of a group, as long as the guesses are what is sampled. Returns whether the group can go on.
    bool sample_group(og_group & group) {
        if (group.sampler == nullptr && group.chain == nullptr) {
            return false;
        }
        llama_token * tokens = step.tokens + outputs_of(group);
        int32_t used = 0;
        bool ended = false;
        while (used < group.n_rows) {
            const int32_t token = sample(group, used);
            if (token < 0) {
                group.status = token;
                ended = true;
                break;
            }
            tokens[group.n_tokens++] = token;
            used++;
            ended = group.n_tokens >= group.max_tokens || group.n_tokens >= step.group_width ||
                    llama_vocab_is_eog(vocab, token);
            if (ended || used == group.n_rows || batch.token[group.row + used] != token) {
                break;
            }
        }
        if (used < group.n_rows && group.n_rows > 1) {  // what follows must not attend to wrong guesses
            forget(group.row + std::max(used, 1));
        }
        return !ended;
    }

    // Make the next batch: of each group the token that was sampled last.
    void advance() const noexcept {
        for (int32_t i = 0; i < step.n_groups; i++) {
            const og_group & group = step.groups[i];
            batch.token[group.row] = step.tokens[i * step.group_width + group.n_tokens - 1];
            batch.pos[group.row]++;
        }
    }
};

}  // namespace

int32_t og_run_step(struct llama_context * ctx, struct llama_batch * batch, og_step * step) {
    const int32_t code = og::guarded_call("llama_decode", [=] {
        StepLoop loop(ctx, *batch, *step);
        const int32_t returned = loop.run();
        loop.finish();
        return returned;
    });
    step->returned_ns = now_ns();
    return code;
}
