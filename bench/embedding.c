/* Loops over the C API for test_embedding.py: each method does the work once and gives nanoseconds of the thread's CPU
 * time an operation. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <time.h>

#include "kvmattr.h"

enum { RANDOM = 1 << 20 };

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return 1e9 * (double)time.tv_sec + (double)time.tv_nsec;
}

static volatile uint64_t sink;

static double random_get(const kvmattr_map *map, const uint64_t *gfns)
{
    uint64_t sum = 0;
    double start = now();
    for (int i = 0; i < RANDOM; i++)
        sum += (uint64_t)kvmattr_get(map, gfns[i]);
    sink = sum;
    return (now() - start) / RANDOM;
}

static double sequential(const kvmattr_map *map, const uint64_t *gfns)
{
    uint64_t sum = 0;
    kvmattr_cursor *cursor;
    double start = now();
    (void)gfns;
    if (kvmattr_cursor_open(map, &cursor) < 0)
        return -1;
    for (uint64_t gfn = 0; gfn < 4 * RANDOM; gfn++)
        sum += (uint64_t)kvmattr_cursor_get(cursor, gfn);
    sink = sum;
    kvmattr_cursor_close(cursor);
    return (now() - start) / (4 * RANDOM);
}

static int count_run(void *context, const kvmattr_run *run)
{
    *(uint64_t *)context += run->attributes;
    return 0;
}

static double callback(const kvmattr_map *map, const uint64_t *gfns)
{
    uint64_t sum = 0;
    double start = now();
    (void)gfns;
    if (kvmattr_runs(map, 0, RANDOM, count_run, &sum) < 0)
        return -1;
    sink = sum;
    return (now() - start) / RANDOM;
}

/* A call through the table that does next to nothing, and the same work behind a plain call. */
static double table_call(const kvmattr_map *map, const uint64_t *gfns)
{
    uint64_t sum = 0;
    double start = now();
    (void)gfns;
    for (int i = 0; i < RANDOM; i++)
        sum += kvmattr_pages(map);
    sink = sum;
    return (now() - start) / RANDOM;
}

__attribute__((noinline)) static uint64_t first_word(const uint64_t *words)
{
    __asm__ volatile("");
    return words != NULL ? words[0] : 0;
}

static double plain_call(const kvmattr_map *map, const uint64_t *gfns)
{
    uint64_t sum = 0;
    double start = now();
    (void)map;
    for (int i = 0; i < RANDOM; i++)
        sum += first_word(gfns);
    sink = sum;
    return (now() - start) / RANDOM;
}

static PyObject *measure(PyObject *object, PyObject *gfns, double (*work)(const kvmattr_map *, const uint64_t *))
{
    const kvmattr_map *map = kvmattr_view_of(object);
    Py_buffer view;
    double result;
    if (map == NULL || PyObject_GetBuffer(gfns, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    result = work(map, (const uint64_t *)view.buf);
    PyBuffer_Release(&view);
    return PyFloat_FromDouble(result);
}

#define MEASURED(name)                                                     \
    static PyObject *measure_##name(PyObject *module, PyObject *args)      \
    {                                                                      \
        PyObject *map, *gfns;                                              \
        (void)module;                                                      \
        if (!PyArg_ParseTuple(args, "OO", &map, &gfns))                    \
            return NULL;                                                   \
        return measure(map, gfns, name);                                   \
    }

MEASURED(random_get)
MEASURED(sequential)
MEASURED(callback)
MEASURED(table_call)
MEASURED(plain_call)

#define METHOD(name) {#name, measure_##name, METH_VARARGS, NULL}

static PyMethodDef methods[] = {METHOD(random_get), METHOD(sequential), METHOD(callback), METHOD(table_call),
                                METHOD(plain_call), {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "embedding", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_embedding(void)
{
    return kvmattr_import() < 0 ? NULL : PyModule_Create(&definition);
}
