// What shim.cpp adds to llama.h, and the places where C calls Python. See shim.cpp and ../_callbacks.py.

// The guard: what it caught last on this thread. NULL when nothing was caught since the last clear.
const char * og_caught_function(void);
const char * og_caught_what(void);
void og_caught_clear(void);

// Cancelling a decode. `user_data` of og_should_abort is one of these; Python owns it.
typedef struct og_cancel {
    int32_t requested;     // set to 1 by any thread: stop at the next node of the graph
    int32_t poll_signals;  // 1 while the calling thread is Python's main thread
    int64_t next_poll_ms;  // when to look for signals next, by the coarse clock
    int32_t deaf;          // nodes to compute before anything can stop it
} og_cancel;
bool og_should_abort(void * user_data);

// End the threads that OpenMP keeps for the calling thread; its next decode starts new ones, in some 50 us. libgomp counts all
// that there are in the process, and where these are more than CPUs, every barrier of every decode is a system call: less
// than half the speed.
void og_release_threads(void);

// Index of the largest of n floats, the first of equals; -1 when n is 0 or all are NaN or -inf.
int32_t og_argmax(const float * values, int32_t n);

// Make `row` the last of a batch that has room for it: a token of one sequence.
void og_batch_put(struct llama_batch * batch, int32_t row, llama_token token, llama_pos pos, llama_seq_id seq_id,
                  bool logits);

// Apply a chain to one row of logits, and accept what it selects. Returns the token, or OG_NOTHING_SELECTED,
// OG_REFUSED (no token has a probability, or the selected one has none), OG_THREW (see og_caught_what) or OG_RAISED (a
// custom sampler's exception is pending). Nothing is accepted then.
#define OG_NOTHING_SELECTED -1
#define OG_REFUSED -2
#define OG_THREW -3
#define OG_RAISED -4
int32_t og_sample(struct llama_sampler * chain, const float * logits, int32_t n_vocab);

// The sampler that calls Python, for llama_sampler_init; its context is the ffi.new_handle of a Custom.
struct llama_sampler_i og_custom;

// The sampler before the one that selects, without a context: it ends og_sample where no token has a probability.
struct llama_sampler_i og_guard;

// How to choose one token of a row, and what was chosen; see fast_sampling.cpp.
typedef struct og_fast_sampler {
    float temperature;             // 0: the largest logit
    int32_t top_k;                 // 0: off
    float typical_p;               // 1: off
    float top_p;                   // 1: off
    float min_p;                   // 0: off
    int32_t min_keep;
    float repeat;                  // 1: off
    float frequency;
    float presence;
    int32_t last_n;                // room in recent
    int32_t * recent;              // the last tokens, for the penalties
    int32_t n_recent;
    int32_t oldest;                // its index, once recent is full
    int32_t n_bias;
    const int32_t * bias_tokens;   // each once
    const float * biases;
    const uint32_t * mask;         // one bit for each token, set where it is allowed; NULL: all
    uint64_t random;               // the state of the random numbers
    int32_t n_top;                 // -1: no logprobs; else how many besides the token's own
    int32_t * top_tokens;          // -1 where there are no more
    float * top_logprobs;
    int32_t token;                 // out: what og_fast_sample returned
    float logprob;                 // out
} og_fast_sampler;

// Choose a token of a row of logits, which are as they were afterwards. Returns the token, OG_REFUSED (nothing is allowed)
// or OG_THREW.
int32_t og_fast_sample(og_fast_sampler * sampler, float * logits, int32_t n_vocab);

// Rows of one sequence whose next tokens are sampled in og_run_step.
typedef struct og_group {
    int32_t row;                      // the first row
    int32_t n_rows;                   // 1, and one for each token that is guessed to follow: the tokens of the rows after it
    og_fast_sampler * sampler;        // one of the two, with room for `width` times n_top; neither: the caller samples
    struct llama_sampler * chain;
    const uint32_t * masks;           // of the sampler, for each row but the first, which has its own; NULL: its own for all
    const int32_t * forced;           // for each row the token that must come, which is not sampled, or -1; NULL: sample all
    int32_t room;                     // most tokens to sample, at least 1
    int32_t n_tokens;                 // out: how many were sampled
    int32_t status;                   // out: 0, or what the sampler returned in place of a token
} og_group;

typedef struct og_step {
    int32_t n_groups;
    og_group * groups;
    int32_t n_steps;                  // most steps; more than one only where every row is a group of its own
    int64_t until_ns;                 // no step begins after that, by the clock of time.perf_counter_ns()
    int32_t n_pads;
    const int32_t * pads;             // rows that nobody asked for: memory forgets them after each step
    int32_t attention;                // set to 1 by any thread: begin no further step
    int32_t width;                    // most tokens of a group
    llama_token * tokens;             // out, [n_groups][width]
    float * logprobs;                 // out, [n_groups][width]: of the groups with n_top >= 0
    char * pieces;                    // out: the bytes of the tokens, one after the other
    int32_t pieces_size;
    int32_t * ends;                   // out, [n_groups][width]: where a token's bytes end; -1: there was no room
    int32_t n_done;                   // out: how many steps there were
    int64_t decode_ns;                // out: how long llama_decode took in all
    int64_t returned_ns;              // out: when it was done
} og_step;

// Decode a batch, sample a token for each group, and go on with these. Of guesses it keeps those that are what is sampled,
// and forgets the others. Ends after the step in which any group has an end of text, no room or no token. Returns what
// llama_decode returned last; what was sampled before is there.
int32_t og_run_step(struct llama_context * ctx, struct llama_batch * batch, og_step * step);

// Whether a grammar would let `token` through; OG_THREW when it threw. Changes nothing.
int32_t og_allows(struct llama_sampler * grammar, int32_t token);

// The bytes of all tokens one after the other, with control tokens as text; where each of them ends, and its llama_token_attr.
// Returns how many bytes there are, or the negative of that where there is no room for them, or INT32_MIN as the guard does.
int32_t og_pieces(const struct llama_vocab * vocab, char * buffer, int32_t size, int32_t * ends, int32_t * attrs);

// The tokens that end a text (OG_ENDS), have one of the llama_token_attr `argument` (OG_HAS), or whose text is of `argument`
// bytes at most (OG_SHORT), in order, to `tokens`, which has room for all. Returns how many, or INT32_MIN as the guard does.
#define OG_ENDS 0
#define OG_HAS 1
#define OG_SHORT 2
int32_t og_find_tokens(const struct llama_vocab * vocab, int32_t what, int32_t argument, int32_t * tokens);

// The first entry of an array of strings that an earlier one equals, or -1.
int64_t og_gguf_repeated(const struct gguf_context * ctx, int64_t key_id);

// A FILE of its own for a descriptor, at `position`; NULL, with errno set, where there can be none.
FILE * og_file_open(int fd, int64_t position);
void og_file_close(FILE * file);

// Whether std::regex takes a pattern; if not, og_caught_what says why.
bool og_regex_compiles(const char * pattern);

// The log callback: og_on_log, and the way out of og_quantize.
void og_log(enum ggml_log_level level, const char * text, void * user_data);

// llama_model_quantize, which ends between two tensors once a log or progress callback has raised.
uint32_t og_quantize(const char * fname_inp, const char * fname_out, const llama_model_quantize_params * params);

// A log callback that drops its line, for the time after the interpreter has gone.
void og_drop_log(enum ggml_log_level level, const char * text, void * user_data);

// How this extension was built.
const char * og_build_commit(void);
const char * og_build_compiler(void);
const char * og_build_flags(void);

extern "Python" {
    void og_on_log(enum ggml_log_level level, const char * text, void * user_data);
    bool og_on_progress(float progress, void * user_data);
    bool og_on_poll(void);
    int32_t og_on_apply(void * custom, struct llama_token_data * candidates, size_t size);
    void og_on_accept(void * custom, llama_token token);
    void og_on_reset(void * custom);
}
