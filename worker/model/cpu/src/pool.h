// The threads of the kernels. A job is a row of phases, each of units that any thread may take; all threads that have
// come run the same function. A phase ends when its units are done, not when every thread has come: on a busy machine
// a thread that gets no core holds up nobody, and the caller alone can finish the job.
#pragma once
#include <atomic>

class Team {
  public:
    explicit Team(int size) : size(size) {}

    // Compute units 0 to `total` with `compute(from, to)`, at most `chunk` at a time, and wait until all are done.
    template <typename Compute> void share(int phase, int total, int chunk, Compute compute) {
        Phase &mine = phases[phase];
        for (;;) {
            const int from = mine.taken.fetch_add(chunk, std::memory_order_relaxed);
            if (from >= total) break;
            const int to = from + chunk < total ? from + chunk : total;
            compute(from, to);
            mine.done.fetch_add(to - from, std::memory_order_release);
        }
        wait(mine.done, total);
    }

    bool join() { return joined.fetch_add(1) < size; }

    const int size;

  private:
    static void wait(const std::atomic<int> &value, int wanted);

    static constexpr int PHASES = 8;
    struct alignas(64) Phase {
        std::atomic<int> taken{0}, done{0};
    } phases[PHASES];
    std::atomic<int> joined{1};  // the caller
};

using Job = void (*)(Team &team, void *arguments);

// Run `job` on up to `threads` threads, the caller's among them, until it is done. Callers queue for the pool.
void run(int threads, Job job, void *arguments);
