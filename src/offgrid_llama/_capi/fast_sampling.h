// The function of the fast sampler that a step needs besides og_fast_sample.
#pragma once

#include "og.h"

#include <cstdint>

namespace og {

// Count a token for the penalties. It takes the place of the oldest once `recent` is full.
inline void keep_recent(og_fast_sampler & sampler, int32_t token) noexcept {
    if (sampler.n_recent < sampler.last_n) {
        sampler.recent[sampler.n_recent++] = token;
    } else if (sampler.last_n > 0) {
        sampler.recent[sampler.oldest_recent] = token;
        sampler.oldest_recent = (sampler.oldest_recent + 1) % sampler.last_n;
    }
}

}  // namespace og
