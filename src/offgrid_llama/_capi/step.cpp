// step.cpp: what the engine does for each token, in one call without the GIL: decode, sample all rows, copy the pieces; and
// do it again with what was sampled, where the caller would only wait for the GIL in between.

typedef struct og_group {
    int32_t row;
    int32_t n_rows;
    og_fast_sampler * sampler;
    struct llama_sampler * chain;
    const uint32_t * masks;
    const int32_t * forced;
    int32_t room;
    int32_t n_tokens;
    int32_t status;
} og_group;

typedef struct og_step {
    int32_t n_groups;
    og_group * groups;
    int32_t n_steps;
    int64_t until_ns;
    int32_t n_pads;
    const int32_t * pads;
    int32_t attention;
    int32_t width;
    llama_token * tokens;
    float * logprobs;
    char * pieces;
    int32_t pieces_size;
    int32_t * ends;
    int32_t n_done;
    int64_t decode_ns;
    int64_t returned_ns;
} og_step;

namespace {

int64_t now_ns() noexcept {  // the clock of time.perf_counter_ns()
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Stepper {
    llama_context * ctx;
    llama_batch & batch;
    og_step & step;
    const llama_vocab * vocab;
    int32_t n_vocab;

    bool samples(const og_group & group) const noexcept { return group.sampler != nullptr || group.chain != nullptr; }

    // Sample one token for a group, of the row that is `index` rows behind its first.
    int32_t sample(og_group & group, int32_t index) {
        if (group.forced != nullptr && group.forced[index] >= 0) {  // there is no choice, and so no number to draw
            keep_recent(*group.sampler, group.forced[index]);
            return group.forced[index];
        }
        float * logits = llama_get_logits_ith(ctx, group.row + index);
        if (group.sampler == nullptr) {
            return og_sample(group.chain, logits, n_vocab);
        }
        const uint32_t * mask = group.sampler->mask;
        if (group.masks != nullptr && index > 0) {
            group.sampler->mask = group.masks + static_cast<size_t>(index - 1) * ((n_vocab + 31) / 32);
        }
        const int32_t token = og_fast_sample(group.sampler, logits, n_vocab);
        group.sampler->mask = mask;
        if (token >= 0 && group.sampler->n_top >= 0) {
            step.logprobs[(&group - step.groups) * step.width + group.n_tokens] = group.sampler->logprob;
            group.sampler->top_tokens += group.sampler->n_top;  // the next token's go behind; finish() goes back
            group.sampler->top_logprobs += group.sampler->n_top;
        }
        return token;
    }

    // Sample from the rows of a group, as long as what was guessed is what is sampled. Returns whether it can go on.
    bool sample_group(og_group & group) {
        if (!samples(group)) {
            return false;
        }
        llama_token * tokens = step.tokens + (&group - step.groups) * step.width;
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
            ended = group.n_tokens >= group.room || group.n_tokens >= step.width || llama_vocab_is_eog(vocab, token);
            if (ended || used == group.n_rows || batch.token[group.row + used] != token) {
                break;
            }
        }
        if (used < group.n_rows && group.n_rows > 1) {  // what was guessed wrong is not to be seen by what follows
            const int32_t first = group.row + std::max(used, 1);
            llama_memory_seq_rm(llama_get_memory(ctx), batch.seq_id[first][0], batch.pos[first], -1);
        }
        return !ended;
    }

    // Make the batch that follows: of each group the token that was sampled last.
    void advance() noexcept {
        for (int32_t i = 0; i < step.n_groups; i++) {
            const og_group & group = step.groups[i];
            batch.token[group.row] = step.tokens[i * step.width + group.n_tokens - 1];
            batch.pos[group.row]++;
        }
    }

    int32_t run() {
        int64_t begin = now_ns();
        while (true) {
            const int32_t code = llama_decode(ctx, batch);
            if (code != 0) {
                return code;
            }
            llama_synchronize(ctx);
            for (int32_t i = 0; i < step.n_pads; i++) {
                const int32_t row = step.pads[i];
                llama_memory_seq_rm(llama_get_memory(ctx), batch.seq_id[row][0], batch.pos[row], -1);
            }
            const int64_t decoded = now_ns();
            step.decode_ns += decoded - begin;
            bool all = step.n_groups > 0;
            for (int32_t i = 0; i < step.n_groups; i++) {
                all = sample_group(step.groups[i]) && all;
            }
            step.n_done++;
            begin = now_ns();
            if (!all || step.n_done >= step.n_steps || begin >= step.until_ns ||
                __atomic_load_n(&step.attention, __ATOMIC_RELAXED) != 0) {
                return 0;
            }
            advance();
        }
    }

    void finish() noexcept {
        int32_t used = 0;
        for (int32_t i = 0; i < step.n_groups; i++) {
            const og_group & group = step.groups[i];
            if (group.sampler != nullptr && group.sampler->n_top > 0) {
                group.sampler->top_tokens -= static_cast<ptrdiff_t>(group.n_tokens) * group.sampler->n_top;
                group.sampler->top_logprobs -= static_cast<ptrdiff_t>(group.n_tokens) * group.sampler->n_top;
            }
            for (int32_t k = 0; k < group.n_tokens; k++) {
                const int32_t at = i * step.width + k;
                const int32_t length =
                    llama_token_to_piece(vocab, step.tokens[at], step.pieces + used, step.pieces_size - used, 0, false);
                used += length > 0 ? length : 0;
                step.ends[at] = length < 0 ? -1 : used;  // -1: no room
            }
        }
    }
};

}  // namespace

static int32_t og_run_step(struct llama_context * ctx, struct llama_batch * batch, og_step * step) noexcept {
    int32_t code = sentinel<int32_t>();
    try {
        const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx));
        Stepper stepper = {ctx, *batch, *step, vocab, llama_vocab_n_tokens(vocab)};
        code = stepper.run();
        stepper.finish();
    } catch (const std::exception & error) {
        remember("llama_decode", error.what());
    } catch (...) {
        remember("llama_decode", "an exception that is no std::exception");
    }
    step->returned_ns = now_ns();
    return code;
}
