// Sampling one token of a row of logits as the usual chain of llama.cpp's samplers does, in the same order: logit biases and
// penalties, a mask, top-k, typical, top-p, min-p, temperature, and a draw.

#include "fast_sampling.h"

#include "guard.h"
#include "logits.h"
#include "og.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace {

using og::BLOCK_LOGITS;
using og::blocks_of;
using og::Candidate;
using og::MAX_LOGIT;
using og::MAXIMA_OF_BLOCK;

struct Before {  // a type, so that sorting calls no function
    bool operator()(const Candidate & a, const Candidate & b) const noexcept {
        return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
    }
};

double uniform(uint64_t * state) noexcept {  // splitmix64 (Steele, Lea, Flood 2014)
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

// The memory that a thread samples with. It is kept, so that most tokens allocate nothing.
struct Workspace {
    std::vector<float> row;      // a copy of the logits, if they cannot be read as they are
    std::vector<float> maxima;   // of each block, from measure()
    std::vector<float> order;    // of parts of the row
    std::vector<double> sums;    // of the weights of each block
    std::vector<Candidate> found;
    std::vector<float> weights;  // of `found`
    std::vector<std::pair<int32_t, float>> edits;  // a token, and its logit before
    std::vector<int32_t> recent;

    float measure(const float * values, int32_t n) {
        maxima.resize(MAXIMA_OF_BLOCK * blocks_of(n, BLOCK_LOGITS));
        return og::measure_blocks(values, n, maxima.data());
    }

    double sum_of_weights(const float * values, int32_t n, float largest, float rate) {
        sums.resize(blocks_of(n, BLOCK_LOGITS));
        return og::weigh_blocks(values, n, largest, rate, sums.data());
    }

    // Measure a row. If it has infinite logits, which share all of the probability, go on with a copy that has numbers.
    float measure_finite(const float *& values, int32_t n) {
        const float largest = measure(values, n);
        if (!(largest > MAX_LOGIT)) {
            return largest;
        }
        if (values != row.data()) {
            row.assign(values, values + n);
        }
        for (float & value : row) {
            value = value > MAX_LOGIT ? MAX_LOGIT : value;
        }
        values = row.data();
        return measure(values, n);
    }

    // The first token whose logit is the largest, after measure().
    int32_t first_of(const float * values, float largest) const noexcept {
        const auto place = static_cast<int32_t>(std::find(maxima.begin(), maxima.end(), largest) - maxima.begin());
        int32_t token = place / MAXIMA_OF_BLOCK * BLOCK_LOGITS;
        while (values[token] != largest) {
            token++;
        }
        return token;
    }

    // Put the tokens whose logits are at least `bound` into `found`, after measure().
    void gather(const float * values, int32_t n, float bound) {
        found.clear();
        og::gather_candidates(values, n, maxima.data(), bound, found);
    }

    // Put the k largest into `found`, sorted, after measure().
    void gather_largest(const float * values, int32_t n, int32_t k) {
        // Of the maxima of more than k parts of the row, the k-th is no larger than the k-th of all logits.
        const auto count = static_cast<int32_t>(maxima.size());
        float bound = -INFINITY;
        if (k <= count) {
            const int32_t width = std::max(1, count / (8 * k)) * MAXIMA_OF_BLOCK;
            order.resize(MAXIMA_OF_BLOCK * blocks_of(count, width));
            og::measure_parts(maxima.data(), count, width, order.data());
            std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<float>());
            bound = order[k - 1];
        }
        gather(values, n, bound);
        if (found.size() > static_cast<size_t>(k)) {
            std::nth_element(found.begin(), found.begin() + (k - 1), found.end(), Before{});
            found.resize(k);
        }
        sort_found();
    }

    void sort_found() { std::sort(found.begin(), found.end(), Before{}); }

    // Fill `weights` with exp((logit - largest) / temperature) of `found`, and return their sum.
    double weigh(float largest, float temperature) {
        weights.resize(found.size());
        double sum = 0.0;
        for (size_t i = 0; i < found.size(); i++) {
            const float weight = expf((found[i].logit - largest) / temperature);
            weights[i] = weight;
            sum += weight;
        }
        return sum;
    }
};

thread_local Workspace workspace_of_thread;

// A row of logits with the biases added and the penalties taken away; the destructor puts back what was there.
class EditedRow {
public:
    EditedRow(Workspace & work, float * logits) noexcept : work(work), values(logits) {}
    EditedRow(const EditedRow &) = delete;
    EditedRow & operator=(const EditedRow &) = delete;

    ~EditedRow() {
        for (; !work.edits.empty(); work.edits.pop_back()) {  // a token that was edited twice: the first edit last
            values[work.edits.back().first] = work.edits.back().second;
        }
    }

    void add_biases(const og_fast_sampler & sampler) {
        for (int32_t i = 0; i < sampler.n_bias; i++) {
            set(sampler.bias_tokens[i], values[sampler.bias_tokens[i]] + sampler.biases[i]);
        }
    }

    void subtract_penalties(const og_fast_sampler & sampler, int32_t n) {
        const bool penalizes = sampler.repeat_penalty != 1.0f || sampler.frequency_penalty != 0.0f ||
                               sampler.presence_penalty != 0.0f;
        if (sampler.n_recent == 0 || !penalizes) {
            return;
        }
        std::vector<int32_t> & recent = work.recent;
        recent.assign(sampler.recent, sampler.recent + sampler.n_recent);
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
            value = value <= 0 ? value * sampler.repeat_penalty : value / sampler.repeat_penalty;
            set(token, value - (count * sampler.frequency_penalty + sampler.presence_penalty));
        }
    }

private:
    Workspace & work;
    float * values;

    void set(int32_t token, float value) {
        work.edits.emplace_back(token, values[token]);
        values[token] = value;
    }
};

// Copy the logits of the allowed tokens to the workspace's row; the others are -inf there.
void copy_allowed(Workspace & work, const float * values, int32_t n, const uint32_t * mask) {
    std::vector<float> & row = work.row;
    row.resize(n);
    for (int32_t begin = 0; begin < n; begin += 32) {
        const uint32_t word = mask[begin / 32];
        const int32_t end = n - begin < 32 ? n : begin + 32;
        if (word == 0) {
            std::fill(row.begin() + begin, row.begin() + end, -INFINITY);
        } else {
            for (int32_t i = begin; i < end; i++) {
                row[i] = (word >> (i - begin) & 1) != 0 ? values[i] : -INFINITY;
            }
        }
    }
}

// --- the filters: each leaves fewer tokens in `found`, which is sorted ----------------------------------------------

// Keep the tokens whose information is nearest to the expected one (Meister et al. 2022, llama_sampler_typical).
void keep_typical(Workspace & work, float largest, float p, int32_t min_keep) {
    const std::vector<Candidate> & found = work.found;
    const std::vector<float> & weights = work.weights;
    const double total = work.weigh(largest, 1.0f);
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
    work.found.swap(kept);
    work.sort_found();
}

// Keep the fewest tokens whose weights make a share of p of `total`; 0 stands for the weight of all that are found.
void keep_nucleus(Workspace & work, float largest, double total, float p, int32_t min_keep) {
    const double all = work.weigh(largest, 1.0f);
    const double enough = p * (total > 0 ? total : all);
    double sum = 0.0;
    for (size_t i = 0; i < work.found.size(); i++) {
        sum += work.weights[i];
        if (sum >= enough && static_cast<int32_t>(i) + 1 >= min_keep) {
            work.found.resize(i + 1);
            return;
        }
    }
}

// Keep the tokens with at least a share of min_p of the largest probability.
void keep_min_p(Workspace & work, float largest, float min_p, int32_t min_keep) {
    const float bound = largest + logf(min_p);
    const std::vector<Candidate> & found = work.found;
    size_t kept = 0;
    while (kept < found.size() && (found[kept].logit >= bound || static_cast<int32_t>(kept) < min_keep)) {
        kept++;
    }
    work.found.resize(kept);
}

// Gather what top-p and min-p can keep, which are the first of the sorted candidates, without gathering all of them: first
// what is within a distance of the largest logit, and while that is not enough, within twice the distance. min-p has been
// applied then. Returns the weight of the whole row, if top-p needs it.
double gather_for_top_p(
        Workspace & work, const og_fast_sampler & sampler, const float * values, int32_t n, float largest) {
    const bool nucleus = sampler.top_p < 1.0f;
    const float bound = sampler.min_p > 0.0f ? largest + logf(sampler.min_p) : -INFINITY;
    const double total = nucleus ? work.sum_of_weights(values, n, largest, 1.0f) : 0.0;
    for (float distance = 8.0f;; distance *= 2) {
        const bool all = distance > 128.0f;
        work.gather(values, n, std::max(bound, all ? -INFINITY : largest - distance));
        const bool enough = !nucleus || largest - distance <= bound || all;
        if (enough || work.weigh(largest, 1.0f) >= sampler.top_p * total) {
            break;
        }
    }
    if (nucleus) {
        work.sort_found();
    }
    return total;
}

// Put the tokens that may be drawn into `found`, and return the largest of their logits.
float filter(Workspace & work, const og_fast_sampler & sampler, const float * values, int32_t n, float largest) {
    const bool typical = sampler.typical_p < 1.0f;
    bool relative = sampler.min_p > 0.0f;
    double total = 0.0;
    if (sampler.top_k > 0) {
        work.gather_largest(values, n, sampler.top_k);
    } else if (typical || sampler.min_keep > 1) {
        work.gather(values, n, -INFINITY);
        work.sort_found();
    } else {
        total = gather_for_top_p(work, sampler, values, n, largest);
        relative = false;
    }
    if (typical) {
        keep_typical(work, largest, sampler.typical_p, sampler.min_keep);
        largest = work.found[0].logit;
        total = 0.0;
    }
    if (sampler.top_p < 1.0f) {
        keep_nucleus(work, largest, total, sampler.top_p, sampler.min_keep);
    }
    if (relative) {
        keep_min_p(work, largest, sampler.min_p, sampler.min_keep);
    }
    return largest;
}

// --- drawing --------------------------------------------------------------------------------------------------------

// Draw from the whole row: the block by the sums, then the token in it.
int32_t draw_from_row(
        Workspace & work, const og_fast_sampler & sampler, const float * values, int32_t n, float largest,
        double chance) {
    const float rate = std::min(1.0f / sampler.temperature, 1e38f);  // 0 * infinity is no number
    double left = chance * work.sum_of_weights(values, n, largest, rate);
    const std::vector<double> & sums = work.sums;
    size_t block = 0;
    while (block + 1 < sums.size() && left >= sums[block]) {
        left -= sums[block++];
    }
    const int32_t begin = static_cast<int32_t>(block) * BLOCK_LOGITS;
    return og::draw_from_block(values, n, begin, largest, rate, left, work.first_of(values, largest));
}

int32_t draw_from_found(Workspace & work, const og_fast_sampler & sampler, float largest, double chance) {
    double left = chance * work.weigh(largest, sampler.temperature);
    size_t i = 0;
    for (; i + 1 < work.found.size(); i++) {
        left -= work.weights[i];
        if (left < 0) {
            break;
        }
    }
    return work.found[i].token;
}

int32_t choose(Workspace & work, og_fast_sampler & sampler, const float * values, int32_t n) {
    const float largest = work.measure_finite(values, n);
    if (largest == -INFINITY) {
        return OG_REFUSED;
    }
    if (sampler.temperature == 0) {
        return work.first_of(values, largest);
    }
    const double chance = uniform(&sampler.random_state);
    if (sampler.top_k <= 0 && sampler.typical_p >= 1.0f && sampler.top_p >= 1.0f && sampler.min_p <= 0.0f) {
        return draw_from_row(work, sampler, values, n, largest, chance);
    }
    return draw_from_found(work, sampler, filter(work, sampler, values, n, largest), chance);
}

// Write down the logarithms of the probabilities that the model itself gives: the row is as the model left it.
void tell_logprobs(Workspace & work, og_fast_sampler & sampler, const float * values, int32_t n) {
    const float largest = work.measure_finite(values, n);
    const double log_total = largest + std::log(work.sum_of_weights(values, n, largest, 1.0f));
    sampler.logprob = static_cast<float>(values[sampler.token] - log_total);
    if (sampler.n_top > 0) {
        work.gather_largest(values, n, sampler.n_top);
        const std::vector<Candidate> & found = work.found;
        const auto n_found = static_cast<int32_t>(found.size());
        for (int32_t i = 0; i < sampler.n_top; i++) {
            sampler.top_tokens[i] = i < n_found ? found[i].token : -1;
            sampler.top_logprobs[i] = i < n_found ? static_cast<float>(found[i].logit - log_total) : -INFINITY;
        }
    }
}

int32_t choose_by_rules(Workspace & work, og_fast_sampler & sampler, float * logits, int32_t n_vocab) {
    EditedRow edited(work, logits);
    edited.add_biases(sampler);
    edited.subtract_penalties(sampler, n_vocab);
    const float * values = logits;
    if (sampler.mask != nullptr) {
        copy_allowed(work, logits, n_vocab, sampler.mask);
        values = work.row.data();
    }
    return choose(work, sampler, values, n_vocab);
}

}  // namespace

int32_t og_fast_sample(og_fast_sampler * sampler, float * logits, int32_t n_vocab) {
    return og::guarded_call("og_fast_sample", OG_THREW, [=]() -> int32_t {
        Workspace & work = workspace_of_thread;
        const int32_t token = choose_by_rules(work, *sampler, logits, n_vocab);
        sampler->token = token;
        if (token < 0) {
            return token;
        }
        if (sampler->n_top >= 0) {
            tell_logprobs(work, *sampler, logits, n_vocab);
        }
        og::keep_recent(*sampler, token);
        return token;
    });
}
