// Loops over a whole row of logits, eight floats at a time.
//
// llama.cpp makes an array of the whole vocabulary for each token, and passes over it for each sampler. Here a row is
// read once, in blocks, and the largest logits of each block are written down. The tokens that can be chosen lie in the
// few blocks whose maximum is large enough.
#pragma once

#include <cstdint>
#include <vector>

namespace og {

inline constexpr float MAX_LOGIT = 1e30f;      // a larger logit counts as this, which can still be divided by a temperature
inline constexpr int32_t BLOCK_LOGITS = 256;   // of a block
inline constexpr int32_t MAXIMA_OF_BLOCK = 8;  // each of every eighth logit; all eight come out of one vector

struct Candidate {
    float logit;
    int32_t token;
};

inline int32_t blocks_of(int32_t n, int32_t block_size) noexcept { return (n + block_size - 1) / block_size; }

// Write the maxima of each block of BLOCK_LOGITS to `maxima`, and return the largest of all. NaN is no maximum.
float measure_blocks(const float * logits, int32_t n, float * maxima) noexcept;

// The same for parts of another size, a multiple of MAXIMA_OF_BLOCK.
float measure_parts(const float * values, int32_t n, int32_t part_size, float * maxima) noexcept;

// Append the tokens whose logits are at least `bound`, and more than -inf. `maxima` are those of blocks of BLOCK_LOGITS.
void gather_candidates(
    const float * logits, int32_t n, const float * maxima, float bound, std::vector<Candidate> & found);

// Write the sum of exp((logit - largest) * rate) of each block to `sums`, and return the sum of all.
double weigh_blocks(const float * logits, int32_t n, float largest, float rate, double * sums) noexcept;

// Draw from the block that begins at `begin`: the token at which `left` of the weights is used up. If none is, as the sums
// are rounded, the last token of the block that has a weight, or else `otherwise`.
int32_t draw_from_block(
    const float * logits, int32_t n, int32_t begin, float largest, float rate, double left, int32_t otherwise) noexcept;

}  // namespace og
