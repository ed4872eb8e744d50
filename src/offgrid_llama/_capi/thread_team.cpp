// The threads of a decode wait for each other hundreds of times per token. libgomp lets them spin for some milliseconds where
// each has a core. Once other programs need the cores, a thread spins while the one that it waits for has no core, and a
// decode takes up to a hundred times as long. While libgomp counts more threads in a process than CPUs, waiting threads sleep
// almost at once: that is right on a busy machine, and half as quick on a quiet one. libgomp looks at its count whenever a
// thread begins to wait. So some threads that do nothing, a crowd, switch from one way to the other, even within a decode.
//
// Linux tells for each thread how long it was ready to run and had no core (schedstat). Teams read that every few milliseconds.

#include "thread_team.h"

#include "guard.h"
#include "og.h"

#include "llama.h"

#include <algorithm>
#include <cstdint>

#if defined(_OPENMP) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define OG_HAS_LIBGOMP
#include <omp.h>
#endif

#ifdef OG_HAS_LIBGOMP

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <ctime>
#include <fcntl.h>
#include <mutex>
#include <sys/syscall.h>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

constexpr int64_t WINDOW_NS = 10'000'000;       // between two looks at a team
constexpr int64_t STALE_NS = 5 * WINDOW_NS;     // a team that began longer ago did something else since its last look
constexpr double WEIGHT = 0.3;                  // of the newest look among all
// Measured with two threads on two cores, beside a program that is busy for a part of the time. Half of the time: 0.17 of
// their own time without a core as they spin and 0.28 as they sleep, and spinning is a half quicker. All of the time: 0.35
// and 0.37, and spinning is half as quick, beside several programs by far less.
constexpr double STARVED = 0.27;
constexpr double STARVED_ASLEEP = 0.30;
constexpr int64_t FIRST_PAUSE_NS = 100'000'000; // from then until the team may spin again
constexpr int64_t LAST_PAUSE_NS = 1'600'000'000;
constexpr int MAX_CROWD = 64;

int64_t now_ns() noexcept {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The same to some milliseconds, within a few nanoseconds.
int64_t coarse_ns() noexcept {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t{now.tv_sec} * 1'000'000'000) + now.tv_nsec;
}

// Threads that do nothing but count. There is one for the process, and it is never destroyed: its thread may outlive main.
class Crowd {
public:
    // Whether waiting threads sleep.
    bool gathered() const noexcept { return is_gathered.load(std::memory_order_relaxed); }

    // Let waiting threads sleep, beside a team of `n_threads`.
    void gather(int n_threads, int64_t now) noexcept {
        const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
        const int n = std::max(2, omp_get_num_procs() - n_threads + 2);
        if (!lock.owns_lock() || gathered() || n > MAX_CROWD) {
            return;
        }
        pause_ns = now - dissolved_ns < 10 * FIRST_PAUSE_NS ? std::min(2 * pause_ns, LAST_PAUSE_NS) : FIRST_PAUSE_NS;
        try {
            const int64_t mine = ++generation;
            std::thread([this, n, mine] { stand_by(n, mine); }).detach();
        } catch (const std::system_error &) {
            return;  // no further thread is allowed: all spin on
        }
        spin_again_ns = now + pause_ns;
        is_gathered.store(true, std::memory_order_relaxed);
    }

    // Let waiting threads spin again, if that was long enough ago.
    void dissolve(int64_t now) noexcept {
        const std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
        if (!lock.owns_lock() || !gathered() || now < spin_again_ns) {
            return;
        }
        dissolved_ns = now;
        generation++;
        is_gathered.store(false, std::memory_order_relaxed);
        over.notify_all();
    }

private:
    std::atomic<bool> is_gathered{false};
    std::mutex mutex;
    std::condition_variable over;
    int64_t generation = 0;      // of the crowd; another one: it is over
    int64_t pause_ns = FIRST_PAUSE_NS;
    int64_t spin_again_ns = 0;
    int64_t dissolved_ns = INT64_MIN / 2;

    void stand_by(int n, int64_t mine) {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals are for threads that wait for something
        std::atomic<int> there{0};
#pragma omp parallel num_threads(n)
        there++;
        std::unique_lock<std::mutex> lock(mutex);
        over.wait(lock, [this, mine] { return generation != mine; });
    }  // libgomp ends the threads with the one that has made them
};

Crowd & crowd() {
    static auto & found = *new Crowd;
    return found;
}

std::atomic<bool> cpu_computes{false};  // whether a node of any graph was computed by threads of this process

// The threads that compute for one thread, and how long they had no core.
class Team {
public:
    ~Team() { dismiss(); }

    void assemble(int n_threads) {
        if (n_threads == n_wanted && (complete || !cpu_computes.load(std::memory_order_relaxed))) {
            if (coarse_ns() > next_look_ns + STALE_NS) {
                waited_ns = -1;
            }
            return;
        }
        dismiss();
        n_wanted = n_threads;
        if (n_threads < 2) {
            return;  // there is no other thread to wait for
        }
        std::vector<pid_t> ids(1, static_cast<pid_t>(syscall(SYS_gettid)));
        complete = cpu_computes.load(std::memory_order_relaxed);
        if (complete) {  // these are the threads that ggml gets, too: libgomp keeps them for the thread that asks for them
            ids.resize(static_cast<size_t>(n_threads));
#pragma omp parallel num_threads(n_threads)
            ids[omp_get_thread_num()] = static_cast<pid_t>(syscall(SYS_gettid));
        }
        for (const pid_t id : ids) {
            char path[64];
            std::snprintf(path, sizeof path, "/proc/self/task/%d/schedstat", static_cast<int>(id));
            const int file = open(path, O_RDONLY | O_CLOEXEC);
            if (file >= 0) {
                files.push_back(file);
            }
        }
    }

    void watch() noexcept {
        if (files.empty()) {
            return;
        }
        const int64_t coarse = coarse_ns();
        if (coarse < next_look_ns) {
            return;
        }
        next_look_ns = coarse + WINDOW_NS;
        const int64_t now = now_ns();
        const int64_t waited = total_wait_ns();
        if (waited < 0) {
            dismiss();
            return;
        }
        if (waited_ns >= 0) {
            const auto time = static_cast<double>(now - looked_ns) * static_cast<double>(files.size());
            weigh(static_cast<double>(waited - waited_ns) / time, now);
        }
        looked_ns = now;
        waited_ns = waited;
    }

    void dismiss() noexcept {
        for (const int file : files) {
            close(file);
        }
        files.clear();
        n_wanted = 0;
        complete = false;
        waited_ns = -1;
    }

private:
    int n_wanted = 0;
    bool complete = false;   // else only the calling thread is known
    std::vector<int> files;  // schedstat of each
    int64_t next_look_ns = 0;
    int64_t looked_ns = 0;
    int64_t waited_ns = -1;  // as it was then; -1: nothing was looked at since the team began
    double starved = 0;  // the share of its time that the team had no core, lately
    bool slept = false;

    // Take in the share of its time that the team had no core, and change to the other way of waiting where that is better.
    void weigh(double share, int64_t now) noexcept {
        const bool sleeps = crowd().gathered();
        if (sleeps != slept) {
            slept = sleeps;
            starved = sleeps ? 0.5 : 0;  // what led to the change
        }
        starved += WEIGHT * (share - starved);
        if (sleeps && starved < STARVED_ASLEEP) {
            crowd().dissolve(now);
        } else if (!sleeps && starved > STARVED) {
            crowd().gather(n_wanted, now);
        }
    }

    // How long all of them have had no core since they began; -1 if one of them has ended.
    int64_t total_wait_ns() const noexcept {
        int64_t total = 0;
        for (const int file : files) {
            char text[96];
            const ssize_t n = pread(file, text, sizeof text - 1, 0);
            if (n <= 0) {
                return -1;
            }
            text[n] = '\0';
            long long ran = 0;
            long long waited = 0;
            if (std::sscanf(text, "%lld %lld", &ran, &waited) != 2) {
                return -1;
            }
            total += waited;
        }
        return total;
    }
};

thread_local Team team;

}  // namespace

void og::assemble_team(llama_context * ctx, int32_t n_tokens) {
    team.assemble(n_tokens > 1 ? llama_n_threads_batch(ctx) : llama_n_threads(ctx));
}

void og::watch_team() noexcept {
    cpu_computes.store(true, std::memory_order_relaxed);
    team.watch();
}

void og::dismiss_team() noexcept { team.dismiss(); }

bool og_threads_sleep() { return crowd().gathered(); }

#else

void og::assemble_team(llama_context *, int32_t) {}
void og::watch_team() noexcept {}
void og::dismiss_team() noexcept {}

bool og_threads_sleep() { return false; }

#endif

int32_t og_decode(llama_context * ctx, llama_batch batch) {
    return og::guarded_call("llama_decode", [=] {
        og::assemble_team(ctx, batch.n_tokens);
        return llama_decode(ctx, batch);
    });
}

int32_t og_encode(llama_context * ctx, llama_batch batch) {
    return og::guarded_call("llama_encode", [=] {
        og::assemble_team(ctx, batch.n_tokens);
        return llama_encode(ctx, batch);
    });
}
