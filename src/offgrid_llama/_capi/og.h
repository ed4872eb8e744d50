// The additions of this extension to llama.h: structs, constants and functions, in plain C, declared once for both readers.
// generate.py gives this file to cffi without the preprocessor's lines; every C++ source of this folder includes it.
#pragma once

#include "gguf.h"
#include "llama.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

// --- guard.cpp: C++ exceptions --------------------------------------------------------------------------------------

// The function whose exception the guard caught last on this thread, and what the exception says. The function is NULL
// if the guard has caught nothing since the last og_caught_clear.
const char * og_caught_function(void);
const char * og_caught_what(void);
void og_caught_clear(void);

// --- assertions.cpp: failed assertions of ggml ----------------------------------------------------------------------

// Have failed assertions throw where guard.h catches them, for the whole process.
void og_catch_assertions(void);

// --- cancel.cpp: cancelling a decode --------------------------------------------------------------------------------

// The user_data of og_should_abort. Python owns it.
typedef struct og_cancel {
    int32_t requested;                  // any thread sets it to 1: the decode ends before the next node of its graph
    int32_t poll_signals;               // 1 while the thread that decodes is Python's main thread
    int64_t next_poll_ms;               // the time of the next check for signals, by the coarse clock
    int32_t nodes_until_abort_allowed;  // the number of nodes to compute before anything can end the decode
} og_cancel;

// The abort callback of a context. ggml calls it between two nodes, on the thread that called llama_decode.
bool og_should_abort(void * user_data);

// End the threads that OpenMP keeps for the calling thread; its next decode starts new ones, in about 50 us. libgomp
// counts the threads of the whole process. If they outnumber the CPUs, each barrier of each decode is a system call, and
// a decode takes more than twice as long.
void og_release_threads(void);

// --- thread_team.cpp: decode, on a busy machine, too ----------------------------------------------------------------

// llama_decode and llama_encode, whose threads wait for each other as it suits what else the machine does.
int32_t og_decode(struct llama_context * ctx, struct llama_batch batch);
int32_t og_encode(struct llama_context * ctx, struct llama_batch batch);

// Whether threads sleep as they wait for each other, as other programs need the cores, too.
bool og_threads_sleep(void);

// --- batch.h --------------------------------------------------------------------------------------------------------

// Write `row` of a batch, one token of one sequence, and make it the last row. The batch must have room for it.
void og_batch_put(struct llama_batch * batch, int32_t row, llama_token token, llama_pos pos, llama_seq_id seq_id,
                  bool logits);

// --- logits.cpp -----------------------------------------------------------------------------------------------------

// The index of the largest of n floats, of equal ones the first; -1 if n is 0 or each float is NaN or -inf.
int32_t og_argmax(const float * values, int32_t n);

// --- samplers.cpp: chains of llama.cpp's samplers -------------------------------------------------------------------

// The value that a sampling function returns in place of a token. Nothing is accepted then.
enum og_no_token {
    OG_NOTHING_SELECTED = -1,  // no sampler of the chain selects a token
    OG_REFUSED = -2,           // no token has a probability, or the selected one has none
    OG_THREW = -3,             // a C++ exception: see og_caught_what
    OG_RAISED = -4             // a custom sampler's Python exception, which is pending
};

// Apply a chain to a row of logits, and accept the token that it selects. Returns the token, or an og_no_token.
int32_t og_sample(struct llama_sampler * chain, const float * logits, int32_t n_vocab);

// Whether a grammar allows `token`: 1, 0, or OG_THREW. The grammar stays as it is.
int32_t og_allows(struct llama_sampler * grammar, int32_t token);

// The sampler that calls Python, for llama_sampler_init. Its context is the ffi.new_handle of a CustomSampler.
extern struct llama_sampler_i og_custom_sampler;

// The sampler before the one that selects, without a context: if no token has a probability, it ends og_sample.
extern struct llama_sampler_i og_logits_guard;

// --- fast_sampling.cpp ----------------------------------------------------------------------------------------------

// How to choose a token of a row of logits, and what was chosen.
typedef struct og_fast_sampler {
    float temperature;             // 0: the token with the largest logit
    int32_t top_k;                 // 0: off
    float typical_p;               // 1: off
    float top_p;                   // 1: off
    float min_p;                   // 0: off
    int32_t min_keep;
    float repeat_penalty;          // 1: off
    float frequency_penalty;
    float presence_penalty;
    int32_t last_n;                // the capacity of `recent`
    int32_t * recent;              // the last tokens, which the penalties count
    int32_t n_recent;
    int32_t oldest_recent;         // the index of the oldest in `recent`, once that is full
    int32_t n_bias;
    const int32_t * bias_tokens;   // each token once
    const float * biases;
    const uint32_t * mask;         // a bit for each token: whether it is allowed; NULL: every token is
    uint64_t random_state;         // of the random number generator
    int32_t n_top;                 // -1: no logprobs; else the number of most probable tokens to tell beside the chosen one
    int32_t * top_tokens;          // out, [n_top]: -1 after the last
    float * top_logprobs;          // out, [n_top]
    int32_t token;                 // out: what og_fast_sample returned
    float logprob;                 // out: of the token
} og_fast_sampler;

// Choose a token of a row of logits. The row is edited meanwhile, and is as before when this returns. Returns the token,
// OG_REFUSED or OG_THREW.
int32_t og_fast_sample(og_fast_sampler * sampler, float * logits, int32_t n_vocab);

// --- step.cpp: decode and sample ------------------------------------------------------------------------------------

// Rows of one sequence, whose next tokens og_run_step samples.
typedef struct og_group {
    int32_t row;                      // the first row
    int32_t n_rows;                   // 1, and one more for each guess: the guesses are the tokens of the rows after the first
    og_fast_sampler * sampler;        // one of the two; if both are NULL, the caller samples
    struct llama_sampler * chain;     // the top_tokens and top_logprobs of `sampler` have room for group_width times n_top
    const uint32_t * row_masks;       // the sampler's mask for each row but the first; NULL: the sampler's own for every row
    const int32_t * forced_tokens;    // of the sampler, for each row: a token that must come, or -1; NULL: sample every row
    int32_t max_tokens;               // the most tokens to sample, at least 1
    int32_t n_tokens;                 // out: how many tokens were sampled
    int32_t status;                   // out: 0, or the og_no_token that the sampler returned
} og_group;

typedef struct og_step {
    int32_t n_groups;
    og_group * groups;
    int32_t max_steps;                // the most steps; more than 1 only if each row of the batch is a group of its own
    int64_t deadline_ns;              // no step begins after this time, by the clock of time.perf_counter_ns()
    int32_t n_padding_rows;
    const int32_t * padding_rows;     // the memory forgets them after each step
    int32_t stop_requested;           // any thread sets it to 1: no further step begins
    int32_t group_width;              // the most tokens of a group
    llama_token * tokens;             // out, [n_groups][group_width]
    float * logprobs;                 // out, [n_groups][group_width]: of the groups with n_top >= 0
    char * pieces;                    // out: the bytes of all tokens, one after the other
    int32_t pieces_size;
    int32_t * piece_ends;             // out, [n_groups][group_width]: where the bytes of a token end; -1: they had no room
    int32_t n_steps_done;             // out: the number of steps
    int64_t decode_ns;                // out: the time in llama_decode, of all steps
    int64_t returned_ns;              // out: when og_run_step returned
} og_step;

// Decode a batch, sample a token for each group, and go on with these tokens. Guesses that are not what is sampled are
// removed from memory. Ends after a step in which a group has an end of text, no room or no token. Returns what
// llama_decode returned last; the tokens of the steps before are in `step`.
int32_t og_run_step(struct llama_context * ctx, struct llama_batch * batch, og_step * step);

// --- vocab.cpp ------------------------------------------------------------------------------------------------------

// Copy the bytes of all tokens to `buffer`, one after the other, control tokens as text; where each token's bytes end to
// `ends`, and its llama_token_attr to `attrs`. Returns the number of bytes, or its negative if `size` is too small, or
// INT32_MIN if the guard caught an exception.
int32_t og_pieces(const struct llama_vocab * vocab, char * buffer, int32_t size, int32_t * ends, int32_t * attrs);

// The rules of og_find_tokens.
enum og_find_rule {
    OG_FIND_EOG = 0,        // the token ends the generation
    OG_FIND_WITH_ATTR = 1,  // it has one of the llama_token_attr `argument`
    OG_FIND_SHORT = 2       // its text is at most `argument` bytes
};

// Write the tokens that match a rule to `tokens`, in order; it has room for the whole vocabulary. Returns how many there
// are, or INT32_MIN if the guard caught an exception.
int32_t og_find_tokens(const struct llama_vocab * vocab, int32_t rule, int32_t argument, int32_t * tokens);

// --- files.cpp: GGUF files, and quantizing them ---------------------------------------------------------------------

// The index of the first string of an array that equals an earlier one, or -1.
int64_t og_gguf_repeated(const struct gguf_context * ctx, int64_t key_id);

// Open a FILE on a duplicate of a descriptor, at `position`. NULL, with errno set, if that fails.
FILE * og_file_open(int fd, int64_t position);
void og_file_close(FILE * file);

// Whether std::regex accepts a pattern. If not, og_caught_what says why.
bool og_regex_compiles(const char * pattern);

// The log callback. It calls og_on_log, and is where og_quantize can be left.
void og_log(enum ggml_log_level level, const char * text, void * user_data);

// A log callback that drops its lines, for the time after the interpreter has ended.
void og_drop_log(enum ggml_log_level level, const char * text, void * user_data);

// llama_model_quantize, which ends between two tensors once a log or progress callback has raised.
uint32_t og_quantize(const char * fname_inp, const char * fname_out, const llama_model_quantize_params * params);

// --- build_info.cpp -------------------------------------------------------------------------------------------------

const char * og_build_commit(void);
const char * og_build_compiler(void);
const char * og_build_flags(void);
