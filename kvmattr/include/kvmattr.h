/* kvmattr: the attributes of guest pages, from C.
 *
 * A *map* holds one attribute byte for each 4 KiB page of a guest. Pages are named by gfn (address >> 12), ranges are
 * half-open [start, stop). A *snapshot* is a map that never changes; it costs nothing to take. A map, its copies and its
 * snapshots are a *family*: they share memory. docs/embedding.md says which layer is for whom and what a call costs.
 *
 * The library is the Python extension kvmattr._core. In one file of your program:
 *
 *     #include <Python.h>              before this header, in files that speak with Python
 *     #include "kvmattr.h"
 *     if (kvmattr_import() < 0) ...    with the GIL, once for each program or extension module; sets ImportError
 *
 * then every file may call what is below, without Python.h and without the GIL. Before that, and if it failed, each
 * function that returns int gives KVMATTR_NOT_IMPORTED, those that take or give a PyObject a RuntimeError.
 *
 * Results: functions that return int give a value >= 0, or one of enum kvmattr_error; kvmattr_error_text() has its
 * text. A call that fails has changed nothing. No function raises, and none calls Python except those that take or
 * give a PyObject.
 *
 * Threads: a family belongs to one thread at a time; if Python has a map of it, to the thread that holds the GIL.
 * After kvmattr_share() any thread may call any function at any time, without the GIL, also on snapshots. Then
 *
 *   look-ups in a snapshot, and a cursor between changes    take no lock and write nothing that others read
 *   everything else                                         takes the family's mutex for one operation
 *   callbacks                                               run without it, over the state at one moment
 *
 * A call takes at most 32 KiB of stack (kvmattr_take; the others 12), beside what callbacks take: 64 KiB are enough for a
 * thread or a coroutine. kvmattr_import() needs a stack as Python does.
 *
 * A cursor belongs to one thread. A snapshot may be read by any number of threads. Once Python has asked for stats(), each
 * call is counted, under the mutex where the family is shared.
 */
#ifndef KVMATTR_H
#define KVMATTR_H

/* Machines that would give wrong answers are told when something is compiled: the store itself, or a client of it. */
#if __SIZEOF_POINTER__ < 8
#error "kvmattr needs pointers of 64 bits: a map of 2^52 pages has no length, and no room, where they are shorter"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "kvmattr needs a little-endian machine: it reads bitmaps and leaves as little-endian words of 64 bits"
#endif

#include <stdint.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when the meaning or the order of what is below changes; new functions are only added at the end. */
#define KVMATTR_ABI_VERSION 1

typedef struct kvmattr_map kvmattr_map;

enum kvmattr_operation { KVMATTR_WRITE = 0, KVMATTR_OR = 1, KVMATTR_AND = 2 };

enum kvmattr_error {
    KVMATTR_NO_MEMORY = -1,
    KVMATTR_BAD_MAP = -2,       /* NULL, not a map, or a snapshot that was released */
    KVMATTR_READ_ONLY = -3,
    KVMATTR_BAD_GFN = -4,
    KVMATTR_BAD_RANGE = -5,
    KVMATTR_BAD_OPERATION = -6,
    KVMATTR_BAD_PAGES = -7,     /* too many pages, or maps of different numbers of pages */
    KVMATTR_BAD_POINTER = -8,
    KVMATTR_NOT_YOURS = -9,     /* the map belongs to a Python object, or is a snapshot, or is not one */
    KVMATTR_NOT_SHARED = -10,
    KVMATTR_NOT_IMPORTED = -11  /* kvmattr_import() was not called yet, or it failed */
};

typedef struct kvmattr_run {
    uint64_t start;
    uint64_t stop;
    uint8_t attributes;
} kvmattr_run;

typedef struct kvmattr_change {
    uint64_t start;
    uint64_t stop;
    uint8_t before;
    uint8_t after;
} kvmattr_change;

/* Called for each run, in order. 0 goes on; anything else ends the walk and is what the call returns (so use
 * values > 0). It may call anything, Python and this library included. */
typedef int (*kvmattr_run_callback)(void *context, const kvmattr_run *run);
typedef int (*kvmattr_change_callback)(void *context, const kvmattr_change *change);

/* A place in a map. It holds the map's state of one moment and moves on to the newest when *version has moved. What
 * it knows is valid while *version == seen: page start + i has values[i & index], for i < count.
 * Made by kvmattr_cursor_open(); there are private fields behind these. */
typedef struct kvmattr_cursor {
    const uint64_t *version;
    uint64_t seen;
    uint64_t start;
    uint64_t count;
    uint64_t index;             /* 0: one value for all of it; 511: a value a page */
    uint8_t values[512];
} kvmattr_cursor;

struct _object;                 /* Python's PyObject */

/* What kvmattr._core.C_API points to. The first two fields keep their place for ever. The functions change when calls
 * begin to be counted: read them at each call, as those below do. */
typedef struct kvmattr_api {
    uint32_t abi_version;
    uint32_t struct_size;
    const char *(*error_text)(int error);
    kvmattr_map *(*map_of)(struct _object *attribute_map);
    const kvmattr_map *(*view_of)(struct _object *attribute_map);
    struct _object *(*object_of)(const kvmattr_map *map);
    int (*create)(uint64_t pages, uint8_t attributes, kvmattr_map **map);
    int (*copy)(const kvmattr_map *map, kvmattr_map **copy);
    int (*destroy)(kvmattr_map *map);
    int (*share)(kvmattr_map *map);
    int (*unshare)(kvmattr_map *map);
    uint64_t (*pages)(const kvmattr_map *map);
    const uint64_t *(*version)(const kvmattr_map *map);
    int (*get)(const kvmattr_map *map, uint64_t gfn);
    int (*take)(const kvmattr_map *map, const uint64_t *gfns, uint8_t *attributes, size_t count);
    int (*all)(const kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes, uint8_t mask);
    int (*run)(const kvmattr_map *map, uint64_t gfn, kvmattr_run *run);
    int (*runs)(const kvmattr_map *map, uint64_t start, uint64_t stop, kvmattr_run_callback callback, void *context);
    int (*diff)(const kvmattr_map *map, const kvmattr_map *before, uint64_t start, uint64_t stop,
                kvmattr_change_callback callback, void *context);
    int (*update)(kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes, int operation, uint8_t mask);
    int (*update_changes)(kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                          uint8_t mask, kvmattr_change_callback callback, void *context);
    int (*snapshot)(const kvmattr_map *map, const kvmattr_map **snapshot);
    int (*release)(const kvmattr_map *snapshot);
    int (*restore)(kvmattr_map *map, const kvmattr_map *source);
    int (*cursor_open)(const kvmattr_map *map, kvmattr_cursor **cursor);
    int (*cursor_seek)(kvmattr_cursor *cursor, uint64_t gfn);
    int (*cursor_close)(kvmattr_cursor *cursor);
} kvmattr_api;

#ifndef KVMATTR_BUILDS_CORE

/* What the functions below call until kvmattr_import() has found the library: each gives KVMATTR_NOT_IMPORTED, or 0 or
 * NULL where there is no code. So a call needs no test of its own. */
#define KVMATTR_UNIMPORTED(name, ...) static int kvmattr_no_##name(__VA_ARGS__) { return KVMATTR_NOT_IMPORTED; }
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#endif
static const char *kvmattr_no_error_text(int error) { return "no error text before kvmattr_import()"; }
static kvmattr_map *kvmattr_no_map_of(struct _object *attribute_map) { return NULL; }
static const kvmattr_map *kvmattr_no_view_of(struct _object *attribute_map) { return NULL; }
static struct _object *kvmattr_no_object_of(const kvmattr_map *map) { return NULL; }
static uint64_t kvmattr_no_pages(const kvmattr_map *map) { return 0; }
static const uint64_t *kvmattr_no_version(const kvmattr_map *map) { return NULL; }
KVMATTR_UNIMPORTED(create, uint64_t pages, uint8_t attributes, kvmattr_map **map)
KVMATTR_UNIMPORTED(copy, const kvmattr_map *map, kvmattr_map **copy)
KVMATTR_UNIMPORTED(map, kvmattr_map *map)
KVMATTR_UNIMPORTED(get, const kvmattr_map *map, uint64_t gfn)
KVMATTR_UNIMPORTED(take, const kvmattr_map *map, const uint64_t *gfns, uint8_t *attributes, size_t count)
KVMATTR_UNIMPORTED(all, const kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes, uint8_t mask)
KVMATTR_UNIMPORTED(run, const kvmattr_map *map, uint64_t gfn, kvmattr_run *run)
KVMATTR_UNIMPORTED(runs, const kvmattr_map *map, uint64_t start, uint64_t stop, kvmattr_run_callback callback,
                   void *context)
KVMATTR_UNIMPORTED(diff, const kvmattr_map *map, const kvmattr_map *before, uint64_t start, uint64_t stop,
                   kvmattr_change_callback callback, void *context)
KVMATTR_UNIMPORTED(update, kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                   uint8_t mask)
KVMATTR_UNIMPORTED(update_changes, kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                   uint8_t mask, kvmattr_change_callback callback, void *context)
KVMATTR_UNIMPORTED(snapshot, const kvmattr_map *map, const kvmattr_map **snapshot)
KVMATTR_UNIMPORTED(release, const kvmattr_map *snapshot)
KVMATTR_UNIMPORTED(restore, kvmattr_map *map, const kvmattr_map *source)
KVMATTR_UNIMPORTED(cursor_open, const kvmattr_map *map, kvmattr_cursor **cursor)
KVMATTR_UNIMPORTED(cursor_seek, kvmattr_cursor *cursor, uint64_t gfn)
KVMATTR_UNIMPORTED(cursor_close, kvmattr_cursor *cursor)
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
#undef KVMATTR_UNIMPORTED

static const kvmattr_api kvmattr_unimported = {
    0, 0,                       /* no version of the ABI, no size */
    kvmattr_no_error_text, kvmattr_no_map_of, kvmattr_no_view_of, kvmattr_no_object_of,
    kvmattr_no_create, kvmattr_no_copy, kvmattr_no_map, kvmattr_no_map, kvmattr_no_map,     /* destroy, share, unshare */
    kvmattr_no_pages, kvmattr_no_version, kvmattr_no_get, kvmattr_no_take, kvmattr_no_all, kvmattr_no_run,
    kvmattr_no_runs, kvmattr_no_diff, kvmattr_no_update, kvmattr_no_update_changes, kvmattr_no_snapshot,
    kvmattr_no_release, kvmattr_no_restore,
    kvmattr_no_cursor_open, kvmattr_no_cursor_seek, kvmattr_no_cursor_close,
};

/* One for each program or extension module, however many of its files include this header. */
__attribute__((weak, visibility("hidden"))) const kvmattr_api *kvmattr_table = &kvmattr_unimported;

/* Another thread may replace it meanwhile: a plain load for the machine, a whole pointer for the language. */
#define KVMATTR_FUNCTION(name) __atomic_load_n(&kvmattr_table->name, __ATOMIC_RELAXED)

/* 1 once kvmattr_import() has found the library, else 0. */
static inline int kvmattr_is_imported(void) { return kvmattr_table->abi_version != 0; }

#ifdef Py_PYTHON_H

/* An ImportError that names the Python which was asked, in place of the one that is set: a program finds the Python of
 * the system, not that of a virtual environment, unless it is told. */
__attribute__((unused)) static void kvmattr_name_the_python(void)
{
    PyObject *prefix = PySys_GetObject("prefix"), *why;
#if PY_VERSION_HEX >= 0x030c0000
    why = PyErr_GetRaisedException();
#else
    PyObject *type, *traceback;
    PyErr_Fetch(&type, &why, &traceback);
    PyErr_NormalizeException(&type, &why, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
#endif
    PyErr_Format(PyExc_ImportError,
                 "kvmattr cannot be imported by the Python at %S: %S. Install it there, or point this program to the "
                 "environment that has it: PYTHONPATH=that environment's site-packages",
                 prefix ? prefix : Py_None, why ? why : Py_None);
    Py_XDECREF(why);
}

/* Find the library. 0, or -1 with an ImportError that says what does not fit. With the GIL, in the interpreter of the
 * process that imports it first: another one gets an ImportError, as Cython's modules belong to one. */
static inline int kvmattr_import(void)
{
    const kvmattr_api *table;
    PyObject *module = PyImport_ImportModule("kvmattr._core");
    if (module == NULL) {
        if (PyErr_ExceptionMatches(PyExc_ModuleNotFoundError))
            kvmattr_name_the_python();
        return -1;
    }
    Py_DECREF(module);
    table = (const kvmattr_api *)PyCapsule_Import("kvmattr._core.C_API", 0);
    if (table == NULL)
        return -1;
    if (table->abi_version != KVMATTR_ABI_VERSION) {
        PyErr_Format(PyExc_ImportError,
                     "the installed kvmattr has C API version %u: this module was compiled for version %u",
                     (unsigned)table->abi_version, (unsigned)KVMATTR_ABI_VERSION);
        return -1;
    }
    if (table->struct_size < sizeof(kvmattr_api)) {
        PyErr_Format(PyExc_ImportError,
                     "the installed kvmattr is older than the one that this module was compiled with: its C API has "
                     "%u bytes, %u are needed",
                     (unsigned)table->struct_size, (unsigned)sizeof(kvmattr_api));
        return -1;
    }
    kvmattr_table = table;
    return 0;
}

/* Whether the library was found; RuntimeError if not. */
__attribute__((unused)) static int kvmattr_check_imported(void)
{
    if (!kvmattr_is_imported())
        PyErr_SetString(PyExc_RuntimeError, "kvmattr_import() was not called yet, or it failed");
    return kvmattr_is_imported();
}

/* The same, and whether there is an object: a NULL from a call of Python's that failed keeps the exception of that call. */
__attribute__((unused)) static int kvmattr_check_object(PyObject *object)
{
    if (object == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "need an AttributeMap, not NULL");
    return object != NULL && kvmattr_check_imported();
}

/* The map inside an AttributeMap, valid as long as the object lives; hold a reference. NULL with TypeError for other
 * objects and for read-only ones (snapshots, a VM's `attributes`). With the GIL. */
static inline kvmattr_map *kvmattr_map_of(PyObject *attribute_map)
{
    return kvmattr_check_object(attribute_map) ? KVMATTR_FUNCTION(map_of)(attribute_map) : NULL;
}

/* The same for reading: any AttributeMap. With the GIL. */
static inline const kvmattr_map *kvmattr_view_of(PyObject *attribute_map)
{
    return kvmattr_check_object(attribute_map) ? KVMATTR_FUNCTION(view_of)(attribute_map) : NULL;
}

/* A new AttributeMap with the content of a map, a copy in constant time; or NULL with an exception. With the GIL. */
static inline PyObject *kvmattr_object_of(const kvmattr_map *map)
{
    return kvmattr_check_imported() ? KVMATTR_FUNCTION(object_of)(map) : NULL;
}

#endif /* Py_PYTHON_H */

/* What an error code means, in words; never NULL. */
static inline const char *kvmattr_error_text(int error)
{
    if (error == KVMATTR_NOT_IMPORTED)
        return "kvmattr_import() was not called yet, or it failed";
    return KVMATTR_FUNCTION(error_text)(error);
}

/* ---- maps ---- */

/* A map of so many pages (at most 2^52), all with these attributes; *map is yours to destroy. */
static inline int kvmattr_create(uint64_t pages, uint8_t attributes, kvmattr_map **map)
{
    return KVMATTR_FUNCTION(create)(pages, attributes, map);
}

/* A writable map with the same content, in constant time and in the same family; *copy is yours to destroy. */
static inline int kvmattr_copy(const kvmattr_map *map, kvmattr_map **copy) { return KVMATTR_FUNCTION(copy)(map, copy); }

/* Only for maps from kvmattr_create() and kvmattr_copy(). Its cursors must be closed before. Using it afterwards is an error
 * that only the debug build is sure to find (KVMATTR_BAD_MAP). A callback may end the map that its walk is of. */
static inline int kvmattr_destroy(kvmattr_map *map) { return KVMATTR_FUNCTION(destroy)(map); }

/* From now on (until as many kvmattr_unshare()) any thread may use the family at any time. Call it while the family is
 * yours alone: with the GIL, if Python has a map of it. Scalar look-ups in maps then cost the mutex, also Python's. */
static inline int kvmattr_share(kvmattr_map *map) { return KVMATTR_FUNCTION(share)(map); }

/* Call it when no other thread uses the family any more; with the GIL, if Python has a map of it. */
static inline int kvmattr_unshare(kvmattr_map *map) { return KVMATTR_FUNCTION(unshare)(map); }

/* The number of pages; 0 for a bad map. No lock. */
static inline uint64_t kvmattr_pages(const kvmattr_map *map) { return KVMATTR_FUNCTION(pages)(map); }

/* The word that rises with every change, after its last page; NULL for a bad map. Read it with kvmattr_load() first, the
 * pages then: what was read belongs to that version or a later one, and is current while the word stays. No lock. */
static inline const uint64_t *kvmattr_version(const kvmattr_map *map) { return KVMATTR_FUNCTION(version)(map); }

static inline uint64_t kvmattr_load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

/* ---- look up ---- */

/* The attributes of a page. No lock in a snapshot. */
static inline int kvmattr_get(const kvmattr_map *map, uint64_t gfn) { return KVMATTR_FUNCTION(get)(map, gfn); }

/* The attributes of many pages, all of one moment; 0 or an error. */
static inline int kvmattr_take(const kvmattr_map *map, const uint64_t *gfns, uint8_t *attributes, size_t count)
{
    return KVMATTR_FUNCTION(take)(map, gfns, attributes, count);
}

/* 1 if (page & mask) == attributes on all pages of the range (also on none), else 0. */
static inline int kvmattr_all(const kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes, uint8_t mask)
{
    return KVMATTR_FUNCTION(all)(map, start, stop, attributes, mask);
}

/* The run that holds a page; 0 or an error. */
static inline int kvmattr_run_at(const kvmattr_map *map, uint64_t gfn, kvmattr_run *run)
{
    return KVMATTR_FUNCTION(run)(map, gfn, run);
}

/* Each run of the range, clipped to it, zero-attribute runs included; 0, an error, or what the callback returned. */
static inline int kvmattr_runs(const kvmattr_map *map, uint64_t start, uint64_t stop, kvmattr_run_callback callback,
                               void *context)
{
    return KVMATTR_FUNCTION(runs)(map, start, stop, callback, context);
}

/* Each run of the range in which a map differs from an earlier state; 0, an error, or what the callback returned. Cost:
 * what differs, within a family. */
static inline int kvmattr_diff(const kvmattr_map *map, const kvmattr_map *before, uint64_t start, uint64_t stop,
                               kvmattr_change_callback callback, void *context)
{
    return KVMATTR_FUNCTION(diff)(map, before, start, stop, callback, context);
}

/* ---- update ---- */

/* WRITE, OR or AND attributes on the range, in the bits of mask; 1 if any page changed, 0 if none did, or an error. */
static inline int kvmattr_update(kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes, int operation,
                                 uint8_t mask)
{
    return KVMATTR_FUNCTION(update)(map, start, stop, attributes, operation, mask);
}

static inline int kvmattr_write(kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes)
{
    return KVMATTR_FUNCTION(update)(map, start, stop, attributes, KVMATTR_WRITE, 0xff);
}

static inline int kvmattr_or(kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes)
{
    return KVMATTR_FUNCTION(update)(map, start, stop, attributes, KVMATTR_OR, 0xff);
}

static inline int kvmattr_and(kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes)
{
    return KVMATTR_FUNCTION(update)(map, start, stop, attributes, KVMATTR_AND, 0xff);
}

/* The same, then each run that this very update changed; 1, 0, an error, or what the callback returned. The update
 * stands whatever the callback returns. */
static inline int kvmattr_update_changes(kvmattr_map *map, uint64_t start, uint64_t stop, uint8_t attributes,
                                         int operation, uint8_t mask, kvmattr_change_callback callback, void *context)
{
    return KVMATTR_FUNCTION(update_changes)(map, start, stop, attributes, operation, mask, callback, context);
}

/* ---- snapshots ---- */

/* The present state, in constant time; *snapshot is yours to release. */
static inline int kvmattr_snapshot(const kvmattr_map *map, const kvmattr_map **snapshot)
{
    return KVMATTR_FUNCTION(snapshot)(map, snapshot);
}

/* Using it afterwards is an error that only the debug build is sure to find (KVMATTR_BAD_MAP). */
static inline int kvmattr_release(const kvmattr_map *snapshot) { return KVMATTR_FUNCTION(release)(snapshot); }

/* Take over the content of another map or snapshot of as many pages; 0 or an error. Constant within a family, plus
 * freeing what differs in slices; else a copy of the runs. */
static inline int kvmattr_restore(kvmattr_map *map, const kvmattr_map *source)
{
    return KVMATTR_FUNCTION(restore)(map, source);
}

/* ---- cursors ---- */

static inline int kvmattr_cursor_open(const kvmattr_map *map, kvmattr_cursor **cursor)
{
    return KVMATTR_FUNCTION(cursor_open)(map, cursor);
}

static inline int kvmattr_cursor_close(kvmattr_cursor *cursor) { return KVMATTR_FUNCTION(cursor_close)(cursor); }

/* The attributes of a page, as kvmattr_get(): in place while the version stays and the page lies where the cursor is. */
static inline int kvmattr_cursor_get(kvmattr_cursor *cursor, uint64_t gfn)
{
    if (cursor != NULL) {
        uint64_t at = gfn - cursor->start;
        if (at < cursor->count && kvmattr_load(cursor->version) == cursor->seen)
            return cursor->values[at & cursor->index];
    }
    return KVMATTR_FUNCTION(cursor_seek)(cursor, gfn);
}

#endif /* KVMATTR_BUILDS_CORE */

#ifdef __cplusplus
}
#endif

#endif /* KVMATTR_H */
