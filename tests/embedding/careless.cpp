/* The same in C++: what was moved from, what is no map, what is thrown in a callback. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "kvmattr.hpp"

namespace {

template <typename Callable> void expect(int code, int line, Callable &&callable)
{
    try {
        callable();
    } catch (const kvmattr::Error &error) {
        if (error.code() == code)
            return;
        std::fprintf(stderr, "line %d: %d, not %d\n", line, error.code(), code);
        std::exit(1);
    }
    std::fprintf(stderr, "line %d: no error\n", line);
    std::exit(1);
}

#define EXPECT(code, expression) expect(code, __LINE__, [&] { (void)(expression); })

void careless()
{
    kvmattr::Map map(1 << 20), taken(std::move(map));
    kvmattr::Cursor cursor(taken), placed(std::move(cursor));
    kvmattr::Snapshot before = taken.snapshot(), kept(std::move(before));
    kvmattr::Map nothing = kvmattr::Map::borrow(nullptr);

    EXPECT(KVMATTR_BAD_MAP, map.get(0));
    EXPECT(KVMATTR_BAD_MAP, map.write(0, 1, 1));
    EXPECT(KVMATTR_BAD_MAP, map.version());
    EXPECT(KVMATTR_BAD_MAP, map.snapshot());
    EXPECT(KVMATTR_BAD_MAP, before.copy());
    EXPECT(KVMATTR_BAD_MAP, kvmattr::Cursor(before));
    EXPECT(KVMATTR_BAD_MAP, nothing.share());
    EXPECT(KVMATTR_BAD_MAP, taken.restore(before));
    EXPECT(KVMATTR_BAD_MAP, kvmattr::View(nullptr).run(0));
    EXPECT(KVMATTR_BAD_POINTER, cursor.get(0));
    EXPECT(KVMATTR_BAD_POINTER, taken.take(nullptr, nullptr, 1));
    EXPECT(KVMATTR_BAD_GFN, placed.get(1 << 20));
    EXPECT(KVMATTR_BAD_RANGE, taken.write(2, 1, 0));
    EXPECT(KVMATTR_BAD_OPERATION, taken.update(0, 1, 1, static_cast<kvmattr::Operation>(7)));
    EXPECT(KVMATTR_BAD_PAGES, taken.restore(kvmattr::Map(5)));
    EXPECT(KVMATTR_NOT_SHARED, taken.unshare());

    taken = std::move(taken);
    map = std::move(taken);         /* an owner that has nothing owns again */
    if (!map.write(0, 7, 3) || placed.get(6) != 3 || kept.get(6) != 0)
        std::exit(1);
    bool thrown = false;
    try {
        map.update(0, 9, 1, kvmattr::Operation::OR, 0xff,
                   [](const kvmattr_change &) -> bool { throw std::out_of_range("mine"); });
    } catch (const std::out_of_range &) {
        thrown = true;
    }
    if (!thrown || map.get(8) != 1)
        std::exit(1);
}

} // namespace

int main()
{
    EXPECT(KVMATTR_NOT_IMPORTED, kvmattr::Map(1));
    EXPECT(KVMATTR_NOT_IMPORTED, kvmattr::View(nullptr).get(0));
    EXPECT(KVMATTR_NOT_IMPORTED, kvmattr::Cursor(kvmattr::View(nullptr)));
    Py_Initialize();
    if (kvmattr_import() < 0) {
        PyErr_Print();
        return 2;
    }
    careless();
    std::puts("goes on");
    return 0;
}
