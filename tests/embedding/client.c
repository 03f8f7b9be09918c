/* The functions of kvmattr.h for a Python test: handles are passed as addresses, so that wrong ones can be too. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kvmattr.h"

#define HANDLE(address) ((kvmattr_map *)(uintptr_t)(address))

static PyObject *client_error_text(PyObject *module, PyObject *args)
{
    int error;
    (void)module;
    return PyArg_ParseTuple(args, "i", &error) ? PyUnicode_FromString(kvmattr_error_text(error)) : NULL;
}

static PyObject *client_map_of(PyObject *module, PyObject *object)
{
    kvmattr_map *map = kvmattr_map_of(object);
    (void)module;
    return map ? PyLong_FromVoidPtr(map) : NULL;
}

static PyObject *client_view_of(PyObject *module, PyObject *object)
{
    const kvmattr_map *map = kvmattr_view_of(object);
    (void)module;
    return map ? PyLong_FromVoidPtr((void *)(uintptr_t)map) : NULL;
}

static PyObject *client_object_of(PyObject *module, PyObject *args)
{
    unsigned long long map;
    (void)module;
    return PyArg_ParseTuple(args, "K", &map) ? kvmattr_object_of(HANDLE(map)) : NULL;
}

/* create(pages, attributes), copy(map) and snapshot(map) give the new handle, or the error. */
static PyObject *made(int result, const kvmattr_map *map)
{
    return result < 0 ? PyLong_FromLong(result) : PyLong_FromVoidPtr((void *)(uintptr_t)map);
}

static PyObject *client_create(PyObject *module, PyObject *args)
{
    unsigned long long pages;
    unsigned char attributes;
    kvmattr_map *map = NULL;
    int result;
    (void)module;
    if (!PyArg_ParseTuple(args, "Kb", &pages, &attributes))
        return NULL;
    result = kvmattr_create(pages, attributes, &map);
    return made(result, map);
}

static PyObject *client_copy(PyObject *module, PyObject *args)
{
    unsigned long long source;
    kvmattr_map *map = NULL;
    int result;
    (void)module;
    if (!PyArg_ParseTuple(args, "K", &source))
        return NULL;
    result = kvmattr_copy(HANDLE(source), &map);
    return made(result, map);
}

static PyObject *client_snapshot(PyObject *module, PyObject *args)
{
    unsigned long long source;
    const kvmattr_map *map = NULL;
    int result;
    (void)module;
    if (!PyArg_ParseTuple(args, "K", &source))
        return NULL;
    result = kvmattr_snapshot(HANDLE(source), &map);
    return made(result, map);
}

#define ONE_HANDLE(name)                                                  \
    static PyObject *client_##name(PyObject *module, PyObject *args)               \
    {                                                                     \
        unsigned long long map;                                           \
        (void)module;                                                     \
        if (!PyArg_ParseTuple(args, "K", &map))                           \
            return NULL;                                                  \
        return PyLong_FromLong(kvmattr_##name(HANDLE(map)));              \
    }

ONE_HANDLE(destroy)
ONE_HANDLE(release)
ONE_HANDLE(share)
ONE_HANDLE(unshare)

static PyObject *client_pages(PyObject *module, PyObject *args)
{
    unsigned long long map;
    (void)module;
    return PyArg_ParseTuple(args, "K", &map) ? PyLong_FromUnsignedLongLong(kvmattr_pages(HANDLE(map))) : NULL;
}

static PyObject *client_version(PyObject *module, PyObject *args)
{
    unsigned long long map;
    const uint64_t *word;
    (void)module;
    if (!PyArg_ParseTuple(args, "K", &map))
        return NULL;
    word = kvmattr_version(HANDLE(map));
    if (word == NULL)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(kvmattr_load(word));
}

static PyObject *client_get(PyObject *module, PyObject *args)
{
    unsigned long long map, gfn;
    (void)module;
    return PyArg_ParseTuple(args, "KK", &map, &gfn) ? PyLong_FromLong(kvmattr_get(HANDLE(map), gfn)) : NULL;
}

/* take(map, gfns as bytes, out or None) -> result */
static PyObject *client_take(PyObject *module, PyObject *args)
{
    unsigned long long map;
    Py_buffer gfns, out;
    int result;
    (void)module;
    if (!PyArg_ParseTuple(args, "Ky*w*", &map, &gfns, &out))
        return NULL;
    result = kvmattr_take(HANDLE(map), (const uint64_t *)gfns.buf, (uint8_t *)out.buf, (size_t)out.len);
    PyBuffer_Release(&gfns);
    PyBuffer_Release(&out);
    return PyLong_FromLong(result);
}

static PyObject *client_all(PyObject *module, PyObject *args)
{
    unsigned long long map, start, stop;
    unsigned char attributes, mask;
    (void)module;
    if (!PyArg_ParseTuple(args, "KKKbb", &map, &start, &stop, &attributes, &mask))
        return NULL;
    return PyLong_FromLong(kvmattr_all(HANDLE(map), start, stop, attributes, mask));
}

static PyObject *client_run_at(PyObject *module, PyObject *args)
{
    unsigned long long map, gfn;
    kvmattr_run run;
    int result;
    (void)module;
    if (!PyArg_ParseTuple(args, "KK", &map, &gfn))
        return NULL;
    result = kvmattr_run_at(HANDLE(map), gfn, &run);
    if (result < 0)
        return PyLong_FromLong(result);
    return Py_BuildValue("(KKi)", run.start, run.stop, run.attributes);
}

/* Runs and changes are collected in a list; the walk ends with 7 once that holds `limit` of them. */
struct collection {
    PyObject *list;
    Py_ssize_t limit;
};

static int collect(struct collection *into, PyObject *item)
{
    if (item == NULL || PyList_Append(into->list, item) < 0)
        Py_FatalError("out of memory");
    Py_DECREF(item);
    return PyList_GET_SIZE(into->list) == into->limit ? 7 : 0;
}

static int collect_run(void *context, const kvmattr_run *run)
{
    return collect((struct collection *)context, Py_BuildValue("(KKi)", run->start, run->stop, run->attributes));
}

static int collect_change(void *context, const kvmattr_change *change)
{
    return collect((struct collection *)context,
                   Py_BuildValue("(KKii)", change->start, change->stop, change->before, change->after));
}

static PyObject *collected(struct collection *into, int result)
{
    return Py_BuildValue("(iN)", result, into->list);
}

static PyObject *client_runs(PyObject *module, PyObject *args)
{
    unsigned long long map, start, stop;
    struct collection into = {PyList_New(0), 0};
    (void)module;
    if (!PyArg_ParseTuple(args, "KKKn", &map, &start, &stop, &into.limit))
        return NULL;
    return collected(&into, kvmattr_runs(HANDLE(map), start, stop, into.limit < 0 ? NULL : collect_run, &into));
}

static PyObject *client_diff(PyObject *module, PyObject *args)
{
    unsigned long long map, before, start, stop;
    struct collection into = {PyList_New(0), 0};
    (void)module;
    if (!PyArg_ParseTuple(args, "KKKKn", &map, &before, &start, &stop, &into.limit))
        return NULL;
    return collected(&into, kvmattr_diff(HANDLE(map), HANDLE(before), start, stop,
                                         into.limit < 0 ? NULL : collect_change, &into));
}

static PyObject *client_update(PyObject *module, PyObject *args)
{
    unsigned long long map, start, stop;
    unsigned char attributes, mask;
    int operation;
    (void)module;
    if (!PyArg_ParseTuple(args, "KKKbib", &map, &start, &stop, &attributes, &operation, &mask))
        return NULL;
    return PyLong_FromLong(kvmattr_update(HANDLE(map), start, stop, attributes, operation, mask));
}

static PyObject *client_update_changes(PyObject *module, PyObject *args)
{
    unsigned long long map, start, stop;
    unsigned char attributes, mask;
    int operation;
    struct collection into = {PyList_New(0), 0};
    (void)module;
    if (!PyArg_ParseTuple(args, "KKKbibn", &map, &start, &stop, &attributes, &operation, &mask, &into.limit))
        return NULL;
    return collected(&into, kvmattr_update_changes(HANDLE(map), start, stop, attributes, operation, mask,
                                                   into.limit < 0 ? NULL : collect_change, &into));
}

static PyObject *client_restore(PyObject *module, PyObject *args)
{
    unsigned long long map, source;
    (void)module;
    if (!PyArg_ParseTuple(args, "KK", &map, &source))
        return NULL;
    return PyLong_FromLong(kvmattr_restore(HANDLE(map), HANDLE(source)));
}

static PyObject *client_cursor_open(PyObject *module, PyObject *args)
{
    unsigned long long map;
    kvmattr_cursor *cursor = NULL;
    int result;
    (void)module;
    if (!PyArg_ParseTuple(args, "K", &map))
        return NULL;
    result = kvmattr_cursor_open(HANDLE(map), &cursor);
    return result < 0 ? PyLong_FromLong(result) : PyLong_FromVoidPtr(cursor);
}

static PyObject *client_cursor_get(PyObject *module, PyObject *args)
{
    unsigned long long cursor, gfn;
    (void)module;
    if (!PyArg_ParseTuple(args, "KK", &cursor, &gfn))
        return NULL;
    return PyLong_FromLong(kvmattr_cursor_get((kvmattr_cursor *)(uintptr_t)cursor, gfn));
}

static PyObject *client_cursor_close(PyObject *module, PyObject *args)
{
    unsigned long long cursor;
    (void)module;
    if (!PyArg_ParseTuple(args, "K", &cursor))
        return NULL;
    return PyLong_FromLong(kvmattr_cursor_close((kvmattr_cursor *)(uintptr_t)cursor));
}

static PyObject *client_null_pointers(PyObject *module, PyObject *args)
{
    unsigned long long map;
    uint64_t gfn = 0;
    uint8_t value;
    (void)module;
    if (!PyArg_ParseTuple(args, "K", &map))
        return NULL;
    return Py_BuildValue("(iiiiiiiii)", kvmattr_create(1, 0, NULL), kvmattr_copy(HANDLE(map), NULL),
                         kvmattr_snapshot(HANDLE(map), NULL), kvmattr_run_at(HANDLE(map), 0, NULL),
                         kvmattr_cursor_open(HANDLE(map), NULL), kvmattr_take(HANDLE(map), NULL, &value, 1),
                         kvmattr_take(HANDLE(map), &gfn, NULL, 1), kvmattr_take(HANDLE(map), NULL, NULL, 0),
                         kvmattr_table->cursor_seek(NULL, 0));
}

#define METHOD(name) {#name, client_##name, METH_VARARGS, NULL}

static PyMethodDef methods[] = {
    METHOD(error_text), {"map_of", client_map_of, METH_O, NULL}, {"view_of", client_view_of, METH_O, NULL}, METHOD(object_of),
    METHOD(create), METHOD(copy), METHOD(destroy), METHOD(share), METHOD(unshare), METHOD(pages), METHOD(version),
    METHOD(get), METHOD(take), METHOD(all), METHOD(run_at), METHOD(runs), METHOD(diff), METHOD(update),
    METHOD(update_changes), METHOD(snapshot), METHOD(release), METHOD(restore), METHOD(cursor_open),
    METHOD(cursor_get), METHOD(cursor_close), METHOD(null_pointers), {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "client", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_client(void)
{
    if (kvmattr_import() < 0)
        return NULL;
    return PyModule_Create(&definition);
}
