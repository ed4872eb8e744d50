// How the threads that compute together wait for each other: they spin as long as each of them has a core.
#pragma once

#include <cstdint>

struct llama_context;

namespace og {

// Say that the calling thread is about to compute `n_tokens` tokens with the threads of a context.
void assemble_team(llama_context * ctx, int32_t n_tokens);

// Look, now and then, whether the calling thread's team waits for cores. To be called often while it computes.
void watch_team() noexcept;

// Say that the threads of the calling thread's team have ended.
void dismiss_team() noexcept;

}  // namespace og
