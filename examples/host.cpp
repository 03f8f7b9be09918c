/* A C++ program that hosts a guest's page attributes, through kvmattr.hpp.
 *
 * The store is a Python extension, so the program starts a Python interpreter once and then needs it no more:
 * everything after kvmattr_import() runs without the GIL. Build, with python3 the one that has kvmattr:
 *
 *     c++ -std=c++17 -O2 host.cpp $(python3 -m kvmattr --includes) \
 *         $(python3-config --ldflags --embed) -o host
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "kvmattr.hpp"

namespace {

constexpr std::uint64_t GUEST_PAGES = 1 << 20; // 4 GiB
constexpr std::uint8_t PRIVATE = 1, NO_WRITE = 4, NO_EXEC = 8;

void print_runs(const kvmattr::View &map, std::uint64_t start, std::uint64_t stop)
{
    map.runs(start, stop, [](const kvmattr_run &run) {
        std::printf("  [0x%llx, 0x%llx) %u\n", static_cast<unsigned long long>(run.start),
                    static_cast<unsigned long long>(run.stop), run.attributes);
        return true;
    });
}

/* vCPU threads look up pages while the main thread converts memory. */
std::uint64_t run_vcpus(kvmattr::Map &map)
{
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> looked{0};
    std::vector<std::thread> vcpus;
    map.share();
    for (int number = 0; number < 2; number++)
        vcpus.emplace_back([&map, &stop, &looked] {
            kvmattr::Cursor cursor(map);
            std::uint64_t count = 0;
            do {
                for (std::uint64_t gfn = 0; gfn < 4096; gfn++, count++)
                    cursor.get(gfn);
            } while (!stop);
            looked += count;
        });
    for (std::uint64_t gfn = 0; gfn < 4096; gfn += 2)
        map.or_(gfn, gfn + 1, PRIVATE);
    stop = true;
    for (std::thread &vcpu : vcpus)
        vcpu.join();
    map.unshare();
    return looked;
}

int host()
{
    kvmattr::Map map(GUEST_PAGES);
    map.write(0, GUEST_PAGES, PRIVATE);                       // the whole guest begins private
    map.update(0x100, 0x200, NO_EXEC, kvmattr::Operation::OR);
    map.and_(0x180, 0x280, static_cast<std::uint8_t>(~PRIVATE)); // and shares a few pages
    std::puts("attributes:");
    print_runs(map, 0, 0x400);

    kvmattr::Snapshot before = map.snapshot();
    std::uint64_t changed = 0;
    map.update(0, 0x300, NO_WRITE, kvmattr::Operation::OR, 0xff, [&changed](const kvmattr_change &change) {
        changed += change.stop - change.start;
        return true;
    });
    std::printf("pages changed: %llu\n", static_cast<unsigned long long>(changed));
    map.restore(before);
    std::printf("restored: %s\n", map.all(0x100, 0x180, PRIVATE | NO_EXEC) ? "yes" : "no");

    std::printf("looked up beside a writer: %s\n", run_vcpus(map) ? "yes" : "no");
    std::printf("every other page private: %d %d\n", map.get(0x180), map.get(0x181));

    try {
        map.get(GUEST_PAGES);
    } catch (const kvmattr::Error &error) {
        std::printf("error %d: %s\n", error.code(), error.what());
    }
    return 0;
}

} // namespace

int main()
{
    Py_Initialize();
    if (kvmattr_import() < 0) {
        PyErr_Print();
        return 1;
    }
    PyThreadState *state = PyEval_SaveThread();
    int result = host();
    PyEval_RestoreThread(state);
    return Py_FinalizeEx() < 0 ? 1 : result;
}
