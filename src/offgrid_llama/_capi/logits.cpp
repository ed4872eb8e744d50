// Loops over a whole row of logits. See logits.h.

#include "logits.h"

#include "og.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// Such a loop is compiled for each width of vectors that processors have, and the one that fits is taken at run time.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define OG_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define OG_WIDE
#endif
#define OG_INLINE inline __attribute__((always_inline))

namespace {

using og::BLOCK_LOGITS;
using og::Candidate;

constexpr int32_t LANES = og::MAXIMA_OF_BLOCK;
constexpr int32_t STRIDE = 4 * LANES;  // floats of one pass of an unrolled loop

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

OG_INLINE Floats load(const float * values) noexcept {
    Floats loaded;
    std::memcpy(&loaded, values, sizeof loaded);
    return loaded;
}

OG_INLINE void store(float * values, Floats stored) noexcept { std::memcpy(values, &stored, sizeof stored); }

OG_INLINE Floats larger(Floats a, Floats b) noexcept { return a > b ? a : b; }  // b where a is NaN

OG_INLINE bool any_of(Ints hits) noexcept {
    uint64_t words[sizeof hits / sizeof(uint64_t)];
    std::memcpy(words, &hits, sizeof hits);
    return (words[0] | words[1] | words[2] | words[3]) != 0;
}

// The largest in each lane; values[0], [LANES], [2 * LANES] and so on are in the first.
OG_INLINE Floats largest_of(const float * values, int32_t n) noexcept {
    Floats largest[4];
    for (Floats & each : largest) {
        each = Floats{} - INFINITY;
    }
    int32_t i = 0;
    for (; i + STRIDE <= n; i += STRIDE) {
        for (int32_t k = 0; k < 4; k++) {
            largest[k] = larger(load(values + i + k * LANES), largest[k]);
        }
    }
    for (; i + LANES <= n; i += LANES) {
        largest[0] = larger(load(values + i), largest[0]);
    }
    Floats all = larger(larger(largest[0], largest[1]), larger(largest[2], largest[3]));
    for (int32_t k = 0; i + k < n; k++) {
        all[k] = values[i + k] > all[k] ? values[i + k] : all[k];
    }
    return all;
}

OG_INLINE float largest_lane(Floats lanes) noexcept {
    float best = -INFINITY;
    for (int32_t k = 0; k < LANES; k++) {
        best = lanes[k] > best ? lanes[k] : best;
    }
    return best;
}

// exp(x) for x <= 0, to 2 units in the last place. Below -87 it is that of -87, which is nothing beside the exp(0) of a sum.
OG_INLINE Floats exp_of(Floats x) noexcept {
    constexpr float MAGIC = 12582912.0f;  // 1.5 * 2**23: adding it rounds, and leaves the integer in the low bits
    const Floats z = larger(x, Floats{} - 87.0f);
    const Floats shifted = z * 1.44269504f + MAGIC;
    const Floats n = shifted - MAGIC;
    const Floats r = (z - n * 0.693145752f) - n * 1.42860677e-6f;
    Floats p = Floats{} + 1.98756915e-4f;
    p = p * r + 1.39819995e-3f;
    p = p * r + 8.33345205e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666654e-1f;
    p = p * r + 5.00000012e-1f;
    p = p * r * r + r + 1.0f;
    return p * (Floats) (((Ints) shifted - (0x4B400000 - 127)) << 23);
}

float exp_of(float x) noexcept { return exp_of(Floats{} + x)[0]; }

OG_INLINE float measure(const float * values, int32_t n, int32_t size, float * maxima) noexcept {
    Floats largest = Floats{} - INFINITY;
    for (int32_t begin = 0; begin < n; begin += size) {
        const Floats lanes = largest_of(values + begin, n - begin < size ? n - begin : size);
        store(maxima, lanes);
        maxima += LANES;
        largest = larger(lanes, largest);
    }
    return largest_lane(largest);
}

OG_WIDE float measure_wide_blocks(const float * logits, int32_t n, float * maxima) noexcept {
    return measure(logits, n, BLOCK_LOGITS, maxima);  // a constant, which the compiler makes use of
}

OG_WIDE float measure_wide_parts(const float * values, int32_t n, int32_t part_size, float * maxima) noexcept {
    return measure(values, n, part_size, maxima);
}

OG_WIDE void gather(const float * logits, int32_t n, const float * maxima, float bound, std::vector<Candidate> & found) {
    for (int32_t begin = 0; begin < n; begin += BLOCK_LOGITS, maxima += LANES) {
        if (!any_of(load(maxima) >= bound)) {
            continue;
        }
        const int32_t end = n - begin < BLOCK_LOGITS ? n : begin + BLOCK_LOGITS;
        for (int32_t i = begin; i < end;) {
            const int32_t stop = std::min(i + STRIDE, end);
            if (stop - i == STRIDE) {
                const float * at = logits + i;
                const Ints hits = (load(at) >= bound) | (load(at + LANES) >= bound) |
                                  (load(at + 2 * LANES) >= bound) | (load(at + 3 * LANES) >= bound);
                if (!any_of(hits)) {
                    i = stop;
                    continue;
                }
            }
            for (; i < stop; i++) {
                if (logits[i] >= bound && logits[i] != -INFINITY) {
                    found.push_back({logits[i], i});
                }
            }
        }
    }
}

OG_WIDE double weigh(const float * logits, int32_t n, float largest, float rate, double * sums) noexcept {
    double total = 0.0;
    for (int32_t begin = 0; begin < n; begin += BLOCK_LOGITS) {
        const int32_t end = n - begin < BLOCK_LOGITS ? n : begin + BLOCK_LOGITS;
        Floats lanes = {0};
        int32_t i = begin;
        for (; i + LANES <= end; i += LANES) {
            lanes += exp_of((load(logits + i) - largest) * rate);
        }
        double sum = 0.0;
        for (int32_t k = 0; k < LANES; k++) {
            sum += lanes[k];
        }
        for (; i < end; i++) {
            sum += exp_of((logits[i] - largest) * rate);
        }
        *sums++ = sum;
        total += sum;
    }
    return total;
}

OG_WIDE int32_t argmax(const float * values, int32_t n) noexcept {
    float largest = -INFINITY;
    int32_t place = 0;
    for (int32_t begin = 0; begin < n; begin += BLOCK_LOGITS) {
        const Floats lanes = largest_of(values + begin, n - begin < BLOCK_LOGITS ? n - begin : BLOCK_LOGITS);
        if (any_of(lanes > largest)) {
            largest = largest_lane(lanes);
            place = begin;
        }
    }
    if (largest == -INFINITY) {
        return -1;
    }
    while (values[place] != largest) {
        place++;
    }
    return place;
}

}  // namespace

// The versions of a loop are functions of this file alone; what other files call is not one of them.

float og::measure_blocks(const float * logits, int32_t n, float * maxima) noexcept {
    return measure_wide_blocks(logits, n, maxima);
}

float og::measure_parts(const float * values, int32_t n, int32_t part_size, float * maxima) noexcept {
    return measure_wide_parts(values, n, part_size, maxima);
}

void og::gather_candidates(
        const float * logits, int32_t n, const float * maxima, float bound, std::vector<Candidate> & found) {
    gather(logits, n, maxima, bound, found);
}

double og::weigh_blocks(const float * logits, int32_t n, float largest, float rate, double * sums) noexcept {
    return weigh(logits, n, largest, rate, sums);
}

int32_t og::draw_from_block(
        const float * logits, int32_t n, int32_t begin, float largest, float rate, double left,
        int32_t otherwise) noexcept {
    int32_t last = otherwise;
    for (int32_t i = begin; i < n && i < begin + BLOCK_LOGITS; i++) {
        if (logits[i] > -INFINITY) {
            last = i;
            left -= exp_of((logits[i] - largest) * rate);
            if (left < 0) {
                break;
            }
        }
    }
    return last;
}

int32_t og_argmax(const float * values, int32_t n) { return argmax(values, n); }
