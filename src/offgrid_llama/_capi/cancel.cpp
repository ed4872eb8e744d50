// Cancelling a decode, from another thread or by a signal.

#include "callbacks.h"
#include "og.h"
#include "thread_team.h"

#include "llama.h"  // IWYU pragma: keep: llama_time_us, where there is no coarse clock

#include <cstdint>
#include <time.h>

#ifdef _OPENMP
#include <omp.h>
#if _OPENMP >= 201811 || (defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9)  // GCC has it, but names an older standard
#define OG_CAN_RELEASE_THREADS
#endif
#endif

namespace {

constexpr int64_t SIGNAL_POLL_MS = 100;  // a poll takes the GIL

// Read the time between two nodes of a graph, with a small model 100,000 times a second. The coarse clock costs a few
// nanoseconds, and is right to some milliseconds.
int64_t coarse_ms() noexcept {
#if defined(CLOCK_MONOTONIC_COARSE)
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t{now.tv_sec} * 1000) + (now.tv_nsec / 1000000);
#else
    return llama_time_us() / 1000;
#endif
}

}  // namespace

bool og_should_abort(void * user_data) {
    og::watch_team();
    auto * cancel = static_cast<og_cancel *>(user_data);
    if (cancel->nodes_until_abort_allowed > 0) {
        cancel->nodes_until_abort_allowed--;
        return false;
    }
    if (__atomic_load_n(&cancel->requested, __ATOMIC_RELAXED) != 0) {
        return true;
    }
    if (cancel->poll_signals == 0) {
        return false;
    }
    const int64_t now = coarse_ms();
    if (now < cancel->next_poll_ms) {
        return false;
    }
    cancel->next_poll_ms = now + SIGNAL_POLL_MS;
    return og_on_poll();
}

void og_release_threads() {
    og::dismiss_team();
#ifdef OG_CAN_RELEASE_THREADS
    omp_pause_resource_all(omp_pause_soft);
#endif
}
