/* What a careless program does, one thing a run: each has an answer, and the program goes on. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvmattr.h"

#define DEMAND(condition)                                                        \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);              \
            exit(1);                                                             \
        }                                                                        \
    } while (0)

static kvmattr_map *map;
static const kvmattr_map *snapshot;
static kvmattr_cursor *cursor;

static void print_error(void)
{
    PyObject *type, *value, *traceback, *text;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    DEMAND(value != NULL);
    text = PyObject_Str(value);
    printf("%s: %s\n", ((PyTypeObject *)type)->tp_name, text ? PyUnicode_AsUTF8(text) : "");
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
}

/* Errors that nobody looks at: what was not made is NULL, and is used. */
static void nothing_was_made(void)
{
    DEMAND(kvmattr_create(1, 0, &map) == KVMATTR_NOT_IMPORTED && map == NULL);
    DEMAND(kvmattr_cursor_open(map, &cursor) == KVMATTR_NOT_IMPORTED && cursor == NULL);
    DEMAND(kvmattr_cursor_get(cursor, 0) == KVMATTR_NOT_IMPORTED);
    DEMAND(kvmattr_cursor_close(cursor) == KVMATTR_NOT_IMPORTED);
    DEMAND(kvmattr_write(map, 0, 1, 1) == KVMATTR_NOT_IMPORTED);
}

static void import(void)
{
    Py_Initialize();
    if (kvmattr_import() < 0) {
        PyErr_Print();
        exit(2);
    }
}

static void null_everywhere(void)
{
    import();
    DEMAND(kvmattr_cursor_open(NULL, &cursor) == KVMATTR_BAD_MAP && cursor == NULL);
    DEMAND(kvmattr_cursor_get(cursor, 0) == KVMATTR_BAD_POINTER);
    DEMAND(kvmattr_cursor_get(cursor, UINT64_MAX) == KVMATTR_BAD_POINTER);
    DEMAND(kvmattr_map_of(NULL) == NULL);
    print_error();
    DEMAND(kvmattr_view_of(NULL) == NULL);
    print_error();
    DEMAND(kvmattr_map_of(PyObject_GetAttrString(Py_None, "map")) == NULL);     /* and its error is kept */
    print_error();
    DEMAND(kvmattr_object_of(NULL) == NULL);
    print_error();
}

/* The callback of a walk, a diff or an update ends all maps of the family. */
static int end_map(void *context, const kvmattr_run *run)
{
    (void)run;
    if (*(kvmattr_map **)context) {
        DEMAND(kvmattr_destroy(*(kvmattr_map **)context) == 0);
        *(kvmattr_map **)context = NULL;
    }
    return 0;
}

static int end_map_changed(void *context, const kvmattr_change *change)
{
    (void)change;
    return end_map(context, NULL);
}

static long resident(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    DEMAND(file && fscanf(file, "%*d %ld", &pages) == 1);
    fclose(file);
    return pages * sysconf(_SC_PAGESIZE) >> 10;
}

static void end_in_callback(void)
{
    long before = 0;
    import();
    for (int i = 0; i < 2000; i++) {
        kvmattr_map *own;
        if (i == 200)
            before = resident();
        DEMAND(kvmattr_create(1 << 20, 0, &own) == 0);
        for (int page = 0; page < 30; page++)
            kvmattr_write(own, 1000 * page, 1000 * page + 1, 1);
        if (i % 3 == 0)
            DEMAND(kvmattr_runs(own, 0, 1 << 20, end_map, &own) == 0);
        else if (i % 3 == 1)
            DEMAND(kvmattr_update_changes(own, 0, 1 << 20, 2, KVMATTR_OR, 255, end_map_changed, &own) == 1);
        else {
            const kvmattr_map *old;
            DEMAND(kvmattr_snapshot(own, &old) == 0 && kvmattr_or(own, 0, 1 << 20, 2) == 1);
            DEMAND(kvmattr_diff(own, old, 0, 1 << 20, end_map_changed, &own) == 0);
            DEMAND(kvmattr_release(old) == 0);
        }
        DEMAND(own == NULL);
    }
    DEMAND(resident() - before < 4096);     /* KiB; a family that stays has 300 */
}

static void another_interpreter(void)
{
    PyThreadState *first, *second;
    import();
    DEMAND(kvmattr_create(100, 3, &map) == 0);
    first = PyThreadState_Get();
    second = Py_NewInterpreter();
    DEMAND(second != NULL);
    DEMAND(kvmattr_import() == -1);
    print_error();
    DEMAND(kvmattr_get(map, 5) == 3);       /* what was found is still there */
    Py_EndInterpreter(second);
    PyThreadState_Swap(first);
    DEMAND(kvmattr_import() == 0 && kvmattr_write(map, 0, 7, 1) == 1 && kvmattr_get(map, 6) == 1);
}

static void after_the_end(void)
{
    import();
    DEMAND(kvmattr_create(1 << 24, 3, &map) == 0 && kvmattr_cursor_open(map, &cursor) == 0);
    DEMAND(Py_FinalizeEx() == 0);
    for (uint64_t gfn = 0; gfn < 1 << 20; gfn += 700)
        DEMAND(kvmattr_write(map, gfn, gfn + 1, 1) == 1);
    DEMAND(kvmattr_cursor_get(cursor, 700) == 1 && kvmattr_cursor_get(cursor, 701) == 3);
    DEMAND(kvmattr_cursor_close(cursor) == 0 && kvmattr_destroy(map) == 0);
}

static int stop;

static void *write_on(void *unused)
{
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
        for (uint64_t gfn = 0; gfn < 1 << 20; gfn += 700)
            kvmattr_write(map, gfn, gfn + 1, (uint8_t)gfn);
    return unused;
}

static void fork_beside_a_writer(void)
{
    pthread_t writer;
    PyThreadState *state;
    import();
    state = PyEval_SaveThread();
    DEMAND(kvmattr_create(1 << 24, 3, &map) == 0 && kvmattr_share(map) == 0);
    pthread_create(&writer, NULL, write_on, NULL);
    for (int i = 0; i < 50; i++) {
        int status;
        pid_t child = fork();
        if (child == 0) {
            alarm(20);
            if (kvmattr_write(map, 3, 1000, 7) < 0 || kvmattr_get(map, 999) != 7 || kvmattr_snapshot(map, &snapshot) < 0
                || kvmattr_all(snapshot, 3, 1000, 7, 255) != 1 || kvmattr_release(snapshot) < 0)
                _exit(1);
            _exit(0);
        }
        DEMAND(waitpid(child, &status, 0) == child && status == 0);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    pthread_join(writer, NULL);
    DEMAND(kvmattr_unshare(map) == 0 && kvmattr_unshare(map) == KVMATTR_NOT_SHARED && kvmattr_destroy(map) == 0);
    PyEval_RestoreThread(state);
}

static void odd_but_right(void)
{
    uint64_t gfns[3] = {0, 2, 9};
    uint8_t values[3];
    kvmattr_run run;
    kvmattr_map *empty;
    import();
    DEMAND(kvmattr_create(0, 3, &empty) == 0 && kvmattr_pages(empty) == 0);
    DEMAND(kvmattr_get(empty, 0) == KVMATTR_BAD_GFN && kvmattr_run_at(empty, 0, &run) == KVMATTR_BAD_GFN);
    DEMAND(kvmattr_write(empty, 0, 0, 1) == 0 && kvmattr_all(empty, 0, 0, 9, 255) == 1);
    DEMAND(kvmattr_runs(empty, 0, 0, end_map, &map) == 0 && kvmattr_take(empty, NULL, NULL, 0) == 0);
    DEMAND(kvmattr_write(empty, 0, 1, 1) == KVMATTR_BAD_RANGE && kvmattr_destroy(empty) == 0);
    DEMAND(kvmattr_create((uint64_t)1 << 52, 3, &map) == 0 && kvmattr_write(map, 5, (uint64_t)1 << 52, 4) == 1);
    DEMAND(kvmattr_restore(map, map) == 0 && kvmattr_diff(map, map, 0, (uint64_t)1 << 52, end_map_changed, &map) == 0);
    DEMAND(kvmattr_get(map, ((uint64_t)1 << 52) - 1) == 4 && kvmattr_get(map, (uint64_t)1 << 52) == KVMATTR_BAD_GFN);
    DEMAND(kvmattr_take(map, gfns, values, 3) == 0 && values[1] == 3 && values[2] == 4);
    DEMAND(kvmattr_snapshot(map, &snapshot) == 0 && kvmattr_destroy(map) == 0);
    DEMAND(kvmattr_get(snapshot, 9) == 4 && kvmattr_copy(snapshot, &map) == 0 && kvmattr_release(snapshot) == 0);
    DEMAND(kvmattr_write(map, 0, 9, 9) == 1 && kvmattr_get(map, 8) == 9 && kvmattr_destroy(map) == 0);
}

/* Every function on a stack of 64 KiB, as those of coroutines and of small threads are. */
static int go_on(void *context, const kvmattr_run *run)
{
    (void)context;
    (void)run;
    return 0;
}

static int go_on_changed(void *context, const kvmattr_change *change)
{
    (void)context;
    (void)change;
    return 0;
}

static void *use_everything(void *unused)
{
    static uint64_t gfns[1 << 16];
    static uint8_t values[1 << 16];
    const uint64_t pages = kvmattr_pages(map);
    const kvmattr_map *before;
    kvmattr_map *other;
    kvmattr_run run;
    for (uint64_t i = 0; i < 1 << 16; i++)
        gfns[i] = i * 2654435761 % pages;
    DEMAND(kvmattr_snapshot(map, &before) == 0 && kvmattr_cursor_open(map, &cursor) == 0);
    for (uint64_t i = 0; i < 1 << 16; i += 7) {
        DEMAND(kvmattr_update(map, gfns[i], gfns[i] + 1, (uint8_t)i, (int)(i % 3), 255) >= 0);
        DEMAND(kvmattr_get(map, gfns[i]) == kvmattr_cursor_get(cursor, gfns[i]));
    }
    DEMAND(kvmattr_update_changes(map, 5, pages / 2, 64, KVMATTR_OR, 255, go_on_changed, NULL) == 1);
    for (size_t count = 1; count <= 1 << 16; count <<= 4)
        DEMAND(kvmattr_take(map, gfns, values, count) == 0 && kvmattr_take(before, gfns, values, count) == 0);
    DEMAND(kvmattr_all(map, 0, pages, 0, 255) == 0 && kvmattr_run_at(map, 9, &run) == 0);
    DEMAND(kvmattr_runs(map, 0, pages, go_on, NULL) == 0);
    DEMAND(kvmattr_diff(map, before, 0, pages, go_on_changed, NULL) == 0);
    DEMAND(kvmattr_create(pages, 0, &other) == 0 && kvmattr_restore(other, map) == 0 && kvmattr_destroy(other) == 0);
    DEMAND(kvmattr_cursor_close(cursor) == 0 && kvmattr_restore(map, before) == 0 && kvmattr_release(before) == 0);
    return unused;
}

static void small_stack(void)
{
    pthread_attr_t small;
    pthread_t thread;
    import();
    pthread_attr_init(&small);
    DEMAND(pthread_attr_setstacksize(&small, 64 << 10) == 0);
    for (int bits = 24; bits <= 52; bits += 28) {
        DEMAND(kvmattr_create((uint64_t)1 << bits, 3, &map) == 0);
        for (uint64_t gfn = 0; gfn < 1 << 20; gfn += 1 << 10)       /* few runs: a take looks at them first */
            DEMAND(kvmattr_write(map, gfn, gfn + 300, (uint8_t)(gfn >> 10)) >= 0);
        DEMAND(pthread_create(&thread, &small, use_everything, NULL) == 0 && pthread_join(thread, NULL) == 0);
        DEMAND(kvmattr_destroy(map) == 0);
    }
}

int main(int argc, char **argv)
{
    struct { const char *name; void (*run)(void); } const known[] = {
        {"nothing was made", nothing_was_made}, {"null everywhere", null_everywhere},
        {"end in callback", end_in_callback}, {"another interpreter", another_interpreter},
        {"after the end", after_the_end}, {"fork beside a writer", fork_beside_a_writer},
        {"odd but right", odd_but_right}, {"a small stack", small_stack},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (argc == 2 && strcmp(argv[1], known[i].name) == 0) {
            known[i].run();
            puts("goes on");
            return 0;
        }
    return 3;
}
