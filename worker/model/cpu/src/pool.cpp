#include "pool.h"

#include <immintrin.h>
#include <sched.h>

#include <mutex>
#include <thread>
#include <vector>

namespace {

// A wait starts by spinning, because what is waited for is mostly microseconds away. Soon it gives up its time slice at
// each turn: on a busy machine the thread waited for may need this very core. Threads without a job sleep after that.
constexpr int SPINS = 500, YIELDS = 100;

template <typename Ready> bool spin(Ready ready, int yields) {
    for (int i = 0; i < SPINS; i++) {
        if (ready()) return true;
        _mm_pause();
    }
    for (int i = 0; yields < 0 || i < yields; i++) {
        if (ready()) return true;
        sched_yield();
    }
    return false;
}

struct Pool {
    std::mutex one_job;
    int threads = 0;
    Team *team = nullptr;
    Job job = nullptr;
    void *arguments = nullptr;
    std::atomic<int> epoch{0};
    // A thread is counted as inside before it looks whether the job is open, and the caller closes the job before it
    // looks whether anybody is inside. So no thread works on a job that is over, however late it wakes.
    std::atomic<bool> open{false};
    std::atomic<int> inside{0};

    void work(int seen) {
        for (;;) {
            if (!spin([&] { return epoch.load() != seen; }, YIELDS)) epoch.wait(seen);
            seen = epoch.load();
            inside.fetch_add(1);
            if (open.load() && team->join()) job(*team, arguments);
            inside.fetch_sub(1);
        }
    }
};

// Never destroyed: its threads end with the process.
Pool &pool() {
    static Pool *the = new Pool;
    return *the;
}

}  // namespace

void Team::wait(const std::atomic<int> &value, int wanted) {
    spin([&] { return value.load(std::memory_order_acquire) == wanted; }, -1);
}

void run(int threads, Job job, void *arguments) {
    Team team(threads < 1 ? 1 : threads);
    if (team.size == 1) return job(team, arguments);
    Pool &p = pool();
    std::lock_guard<std::mutex> alone(p.one_job);
    for (; p.threads < team.size - 1; p.threads++)
        std::thread([&p, seen = p.epoch.load()] { p.work(seen); }).detach();
    p.team = &team, p.job = job, p.arguments = arguments;
    p.open.store(true);
    p.epoch.fetch_add(1);
    p.epoch.notify_all();
    job(team, arguments);
    p.open.store(false);
    spin([&] { return p.inside.load() == 0; }, -1);
}
