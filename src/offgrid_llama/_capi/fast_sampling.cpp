// fast_sampling.cpp: one token of a row of logits, with what the usual chain of llama.cpp's samplers does, in the same order:
// biases and penalties, a mask, top-k, typical, top-p, min-p, temperature, and a draw.
//
// llama.cpp makes an array of the whole vocabulary for each token, and passes over it for each sampler. This reads the row
// once, for the maximum of each block; whatever can be chosen lies in the few blocks whose maximum is large enough.

typedef struct og_fast_sampler {
    float temperature;
    int32_t top_k;
    float typical_p;
    float top_p;
    float min_p;
    int32_t min_keep;
    float repeat;
    float frequency;
    float presence;
    int32_t last_n;
    int32_t * recent;
    int32_t n_recent;
    int32_t oldest;
    int32_t n_bias;
    const int32_t * bias_tokens;
    const float * biases;
    const uint32_t * mask;
    uint64_t random;
    int32_t n_top;
    int32_t * top_tokens;
    float * top_logprobs;
    int32_t token;
    float logprob;
} og_fast_sampler;

namespace {

// The loops over a whole row are compiled for the widths that processors have, and the one that fits is taken at run time.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define OG_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define OG_WIDE
#endif
#define OG_INLINE inline __attribute__((always_inline))

constexpr int32_t BLOCK = 256;
constexpr int32_t LANES = 8;
constexpr int32_t STEP = 4 * LANES;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

OG_INLINE Floats load(const float * values) noexcept {
    Floats loaded;
    std::memcpy(&loaded, values, sizeof loaded);
    return loaded;
}

OG_INLINE Floats larger(Floats a, Floats b) noexcept { return a > b ? a : b; }  // b where a is NaN

struct Candidate {
    float logit;
    int32_t token;
};

bool before(const Candidate & a, const Candidate & b) noexcept {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

OG_INLINE void store(float * values, Floats stored) noexcept { std::memcpy(values, &stored, sizeof stored); }

// The largest in each of LANES lanes, of values[0], [LANES], [2 * LANES] and so on in the first.
OG_INLINE Floats largest_of(const float * values, int32_t n) noexcept {
    Floats most[4];
    for (Floats & each : most) {
        each = Floats{} - INFINITY;
    }
    int32_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        for (int32_t k = 0; k < 4; k++) {
            most[k] = larger(load(values + i + k * LANES), most[k]);
        }
    }
    for (; i + LANES <= n; i += LANES) {
        most[0] = larger(load(values + i), most[0]);
    }
    Floats all = larger(larger(most[0], most[1]), larger(most[2], most[3]));
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

// Write the largest in each lane of each block, and return the largest of all.
OG_WIDE float measure_blocks(const float * values, int32_t n, int32_t block, float * maxima) noexcept {
    Floats most = Floats{} - INFINITY;
    for (int32_t begin = 0; begin < n; begin += block) {
        const Floats lanes = largest_of(values + begin, n - begin < block ? n - begin : block);
        store(maxima, lanes);
        maxima += LANES;
        most = larger(lanes, most);
    }
    return largest_lane(most);
}

OG_INLINE bool any_of(Ints hits) noexcept {
    uint64_t words[sizeof hits / sizeof(uint64_t)];
    std::memcpy(words, &hits, sizeof hits);
    return (words[0] | words[1] | words[2] | words[3]) != 0;
}

// Append what is not smaller than `least`, and more than -inf; `maxima` as measure_blocks has written them.
OG_WIDE void gather_from(
        const float * values, int32_t n, const float * maxima, float least, std::vector<Candidate> & found) {
    for (int32_t begin = 0; begin < n; begin += BLOCK, maxima += LANES) {
        if (!any_of(load(maxima) >= least)) {
            continue;
        }
        const int32_t end = n - begin < BLOCK ? n : begin + BLOCK;
        for (int32_t i = begin; i < end;) {
            const int32_t stop = std::min(i + STEP, end);
            if (stop - i == STEP) {
                const float * at = values + i;
                const Ints hits = (load(at) >= least) | (load(at + LANES) >= least) |
                                  (load(at + 2 * LANES) >= least) | (load(at + 3 * LANES) >= least);
                if (!any_of(hits)) {
                    i = stop;
                    continue;
                }
            }
            for (; i < stop; i++) {
                if (values[i] >= least && values[i] != -INFINITY) {
                    found.push_back({values[i], i});
                }
            }
        }
    }
}

// exp(x) for x <= 0, to 2 units in the last place; below -87 that of -87, which is nothing beside the exp(0) of a sum.
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

// The sums of exp((value - most) * rate) over each block; their sum.
OG_WIDE double weigh_blocks(const float * values, int32_t n, float most, float rate, double * sums) noexcept {
    double total = 0.0;
    for (int32_t begin = 0; begin < n; begin += BLOCK) {
        const int32_t end = n - begin < BLOCK ? n : begin + BLOCK;
        Floats lanes = {0};
        int32_t i = begin;
        for (; i + LANES <= end; i += LANES) {
            lanes += exp_of((load(values + i) - most) * rate);
        }
        double sum = 0.0;
        for (int32_t k = 0; k < LANES; k++) {
            sum += lanes[k];
        }
        for (; i < end; i++) {
            sum += exp_of((values[i] - most) * rate);
        }
        *sums++ = sum;
        total += sum;
    }
    return total;
}

int32_t blocks_of(int32_t n, int32_t size) noexcept { return (n + size - 1) / size; }

double uniform(uint64_t * state) noexcept {  // splitmix64 (Steele, Lea, Flood 2014)
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

// What a thread samples with; its memory is kept, so that there is nothing to allocate for most tokens.
struct Desk {
    std::vector<float> row;      // a copy of the logits, where they cannot be read as they are
    std::vector<float> maxima;   // of each block
    std::vector<float> order;    // of parts of the row
    std::vector<double> sums;    // of each block's weights
    std::vector<Candidate> found;
    std::vector<float> weights;  // of what was found
    std::vector<std::pair<int32_t, float>> edits;  // token, and its logit before
    std::vector<int32_t> recent;

    double sum_of_weights(const float * values, int32_t n, float most, float rate) {
        sums.resize(blocks_of(n, BLOCK));
        return weigh_blocks(values, n, most, rate, sums.data());
    }

    float measure(const float * values, int32_t n) {
        maxima.resize(LANES * blocks_of(n, BLOCK));
        return measure_blocks(values, n, BLOCK, maxima.data());
    }

    // Of infinite logits, which share all that there is, look at a copy that has numbers.
    void limit(const float *& values, int32_t n, float & most) {
        if (!(most > LARGEST)) {
            return;
        }
        if (values != row.data()) {
            row.assign(values, values + n);
        }
        for (float & value : row) {
            value = value > LARGEST ? LARGEST : value;
        }
        values = row.data();
        most = measure(values, n);
    }

    int32_t first_of(const float * values, float most) const noexcept {
        auto i = static_cast<int32_t>(std::find(maxima.begin(), maxima.end(), most) - maxima.begin()) / LANES * BLOCK;
        while (values[i] != most) {
            i++;
        }
        return i;
    }

    // Put what is not smaller than `least` into `found`, after measure().
    void gather(const float * values, int32_t n, float least) {
        found.clear();
        gather_from(values, n, maxima.data(), least, found);
    }

    // The k largest, in order, into `found`, after measure().
    void gather_largest(const float * values, int32_t n, int32_t k) {
        // Of the maxima of more than k parts of the row, the k-th is no larger than the k-th of all.
        const auto count = static_cast<int32_t>(maxima.size());
        float least = -INFINITY;
        if (k <= count) {
            const int32_t width = std::max(1, count / (8 * k)) * LANES;
            order.resize(LANES * blocks_of(count, width));
            measure_blocks(maxima.data(), count, width, order.data());
            std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<float>());
            least = order[k - 1];
        }
        gather(values, n, least);
        if (found.size() > static_cast<size_t>(k)) {
            std::nth_element(found.begin(), found.begin() + (k - 1), found.end(), before);
            found.resize(k);
        }
        std::sort(found.begin(), found.end(), before);
    }

    // Fill `weights` with exp((logit - most) / temperature) of what was found, and return their sum.
    double weigh(float most, float temperature) {
        weights.resize(found.size());
        double sum = 0.0;
        for (size_t i = 0; i < found.size(); i++) {
            const float weight = expf((found[i].logit - most) / temperature);
            weights[i] = weight;
            sum += weight;
        }
        return sum;
    }

    // Keep the tokens whose information is nearest to what is expected (Meister et al. 2022, llama_sampler_typical).
    void keep_typical(float most, float p, int32_t min_keep) {
        const double total = weigh(most, 1.0f);
        double entropy = 0.0;
        for (const float weight : weights) {
            const double share = weight / total;
            entropy -= share > 0 ? share * std::log(share) : 0.0;
        }
        std::vector<std::pair<double, size_t>> distance(found.size());
        for (size_t i = 0; i < found.size(); i++) {
            distance[i] = {std::fabs(-std::log(weights[i] / total) - entropy), i};
        }
        std::sort(distance.begin(), distance.end());
        std::vector<Candidate> kept;
        double sum = 0.0;
        for (size_t i = 0; i < distance.size(); i++) {
            kept.push_back(found[distance[i].second]);
            sum += weights[distance[i].second] / total;
            if (sum > p && (min_keep == 0 || static_cast<int32_t>(i) >= min_keep - 1)) {
                break;
            }
        }
        std::sort(kept.begin(), kept.end(), before);
        found.swap(kept);
    }

    // Keep the fewest of the sorted candidates that have a share of p in `total`, 0 for that of all candidates.
    void keep_nucleus(float most, double total, float p, int32_t min_keep) {
        const double all = weigh(most, 1.0f);
        const double enough = p * (total > 0 ? total : all);
        double sum = 0.0;
        for (size_t i = 0; i < found.size(); i++) {
            sum += weights[i];
            if (sum >= enough && static_cast<int32_t>(i) + 1 >= min_keep) {
                found.resize(i + 1);
                return;
            }
        }
    }

    // Draw from the whole row: the block by the sums, then the token within it.
    int32_t draw_from_all(const og_fast_sampler * sampler, const float * values, int32_t n, float most, double chance) {
        const float rate = std::min(1.0f / sampler->temperature, 1e38f);  // 0 * infinity is no number
        double left = chance * sum_of_weights(values, n, most, rate);
        size_t block = 0;
        while (block + 1 < sums.size() && left >= sums[block]) {
            left -= sums[block++];
        }
        int32_t last = first_of(values, most);
        const int32_t begin = static_cast<int32_t>(block) * BLOCK;
        for (int32_t i = begin; i < n && i < begin + BLOCK; i++) {
            if (values[i] > -INFINITY) {
                last = i;
                left -= exp_of((values[i] - most) * rate);
                if (left < 0) {
                    break;
                }
            }
        }
        return last;
    }

    int32_t draw_from_found(const og_fast_sampler * sampler, float most, double chance) {
        double left = chance * weigh(most, sampler->temperature);
        size_t i = 0;
        for (; i + 1 < found.size(); i++) {
            left -= weights[i];
            if (left < 0) {
                break;
            }
        }
        return found[i].token;
    }

    void set(float * values, int32_t token, float value) {
        edits.emplace_back(token, values[token]);
        values[token] = value;
    }

    // Add the biases and take away the penalties, and remember what was there.
    void edit(const og_fast_sampler * sampler, float * values, int32_t n) {
        for (int32_t i = 0; i < sampler->n_bias; i++) {
            set(values, sampler->bias_tokens[i], values[sampler->bias_tokens[i]] + sampler->biases[i]);
        }
        if (sampler->n_recent == 0 || (sampler->repeat == 1.0f && sampler->frequency == 0.0f && sampler->presence == 0.0f)) {
            return;
        }
        recent.assign(sampler->recent, sampler->recent + sampler->n_recent);
        std::sort(recent.begin(), recent.end());
        for (size_t i = 0; i < recent.size();) {
            size_t end = i;
            while (end < recent.size() && recent[end] == recent[i]) {
                end++;
            }
            const int32_t token = recent[i];
            const auto count = static_cast<float>(end - i);
            i = end;
            if (token < 0 || token >= n) {
                continue;
            }
            float value = values[token];
            value = value <= 0 ? value * sampler->repeat : value / sampler->repeat;
            set(values, token, value - (count * sampler->frequency + sampler->presence));
        }
    }

    // Put back what was there, the first edit of a token last.
    void undo(float * values) noexcept {
        for (; !edits.empty(); edits.pop_back()) {
            values[edits.back().first] = edits.back().second;
        }
    }

    void copy_allowed(const float * values, int32_t n, const uint32_t * mask) {
        row.resize(n);
        for (int32_t begin = 0; begin < n; begin += 32) {
            const uint32_t word = mask[begin / 32];
            const int32_t end = n - begin < 32 ? n : begin + 32;
            if (word == 0) {
                std::fill(row.begin() + begin, row.begin() + end, -INFINITY);
            } else {
                for (int32_t i = begin; i < end; i++) {
                    row[i] = word >> (i - begin) & 1 ? values[i] : -INFINITY;
                }
            }
        }
    }

    int32_t choose(og_fast_sampler * sampler, const float * values, int32_t n) {
        float most = measure(values, n);
        limit(values, n, most);
        if (most == -INFINITY) {
            return OG_REFUSED;
        }
        if (sampler->temperature == 0) {
            return first_of(values, most);
        }
        const double chance = uniform(&sampler->random);
        const bool typical = sampler->typical_p < 1.0f, nucleus = sampler->top_p < 1.0f;
        bool relative = sampler->min_p > 0.0f;
        if (sampler->top_k <= 0 && !typical && !nucleus && !relative) {
            return draw_from_all(sampler, values, n, most, chance);
        }
        const float least = relative ? most + logf(sampler->min_p) : -INFINITY;
        double total = 0.0;
        if (sampler->top_k > 0) {
            gather_largest(values, n, sampler->top_k);
        } else if (typical || sampler->min_keep > 1) {
            gather(values, n, -INFINITY);
            std::sort(found.begin(), found.end(), before);
        } else {
            // What top-p and min-p keep are the first of the sorted candidates: no more than these are found.
            total = nucleus ? sum_of_weights(values, n, most, 1.0f) : 0.0;
            for (float reach = 8.0f;; reach *= 2) {
                const bool all = reach > 128.0f;
                gather(values, n, std::max(least, all ? -INFINITY : most - reach));
                const bool enough = !nucleus || most - reach <= least || all;
                if (enough || weigh(most, 1.0f) >= sampler->top_p * total) {
                    break;
                }
            }
            if (nucleus) {
                std::sort(found.begin(), found.end(), before);
            }
            relative = false;
        }
        if (typical) {
            keep_typical(most, sampler->typical_p, sampler->min_keep);
            most = found[0].logit;
            total = 0.0;
        }
        if (nucleus) {
            keep_nucleus(most, total, sampler->top_p, sampler->min_keep);
        }
        if (relative) {
            const float bound = most + logf(sampler->min_p);
            size_t kept = 0;
            while (kept < found.size() && (found[kept].logit >= bound || static_cast<int32_t>(kept) < sampler->min_keep)) {
                kept++;
            }
            found.resize(kept);
        }
        return draw_from_found(sampler, most, chance);
    }

    // The logarithms of the probabilities that the model itself gives, before anything is done to them.
    void tell_logprobs(og_fast_sampler * sampler, const float * values, int32_t n) {
        float most = measure(values, n);
        limit(values, n, most);
        const double log_total = most + std::log(sum_of_weights(values, n, most, 1.0f));
        sampler->logprob = static_cast<float>(values[sampler->token] - log_total);
        if (sampler->n_top > 0) {
            gather_largest(values, n, sampler->n_top);
            const auto n_found = static_cast<int32_t>(found.size());
            for (int32_t i = 0; i < sampler->n_top; i++) {
                sampler->top_tokens[i] = i < n_found ? found[i].token : -1;
                sampler->top_logprobs[i] = i < n_found ? static_cast<float>(found[i].logit - log_total) : -INFINITY;
            }
        }
    }
};

thread_local Desk desk_of_thread;

// Count a token for the penalties; the oldest gives way.
void keep_recent(og_fast_sampler & sampler, int32_t token) noexcept {
    if (sampler.n_recent < sampler.last_n) {
        sampler.recent[sampler.n_recent++] = token;
    } else if (sampler.last_n > 0) {
        sampler.recent[sampler.oldest] = token;
        sampler.oldest = (sampler.oldest + 1) % sampler.last_n;
    }
}

}  // namespace

static OG_WIDE int32_t og_argmax(const float * values, int32_t n) noexcept {
    float most = -INFINITY;
    int32_t place = 0;
    for (int32_t begin = 0; begin < n; begin += BLOCK) {
        const Floats lanes = largest_of(values + begin, n - begin < BLOCK ? n - begin : BLOCK);
        if (any_of(lanes > most)) {
            most = largest_lane(lanes);
            place = begin;
        }
    }
    if (most == -INFINITY) {
        return -1;
    }
    while (values[place] != most) {
        place++;
    }
    return place;
}

static int32_t og_fast_sample(og_fast_sampler * sampler, float * logits, int32_t n_vocab) noexcept {
    Desk & desk = desk_of_thread;
    try {
        desk.edit(sampler, logits, n_vocab);
        const float * values = logits;
        if (sampler->mask != nullptr) {
            desk.copy_allowed(logits, n_vocab, sampler->mask);
            values = desk.row.data();
        }
        const int32_t token = desk.choose(sampler, values, n_vocab);
        desk.undo(logits);
        sampler->token = token;
        if (token < 0) {
            return token;
        }
        if (sampler->n_top >= 0) {
            desk.tell_logprobs(sampler, logits, n_vocab);
        }
        keep_recent(*sampler, token);
        return token;
    } catch (const std::exception & error) {
        desk.undo(logits);
        remember("og_fast_sample", error.what());
    } catch (...) {
        desk.undo(logits);
        remember("og_fast_sample", "an exception that is no std::exception");
    }
    return OG_THREW;
}
