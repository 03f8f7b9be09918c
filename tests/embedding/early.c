/* Calls before kvmattr_import(), and after. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kvmattr.h"

static int no_run(void *context, const kvmattr_run *run)
{
    (void)context;
    (void)run;
    return 1;
}

static int no_change(void *context, const kvmattr_change *change)
{
    (void)context;
    (void)change;
    return 1;
}

/* What each function that returns a code gives; every pointer is one that a call could write through. */
static PyObject *early_codes(PyObject *module, PyObject *none)
{
    kvmattr_map *map = NULL;
    const kvmattr_map *snapshot = NULL;
    kvmattr_cursor *opened = NULL, cursor = {0};
    kvmattr_run run;
    uint64_t gfn = 0;
    uint8_t attributes;
    int codes[] = {
        kvmattr_create(10, 0, &map), kvmattr_copy(map, &map), kvmattr_destroy(map), kvmattr_share(map),
        kvmattr_unshare(map), kvmattr_get(map, 0), kvmattr_take(map, &gfn, &attributes, 1),
        kvmattr_all(map, 0, 1, 0, 255), kvmattr_run_at(map, 0, &run), kvmattr_runs(map, 0, 1, no_run, NULL),
        kvmattr_diff(map, map, 0, 1, no_change, NULL), kvmattr_update(map, 0, 1, 1, KVMATTR_OR, 255),
        kvmattr_write(map, 0, 1, 1), kvmattr_or(map, 0, 1, 1), kvmattr_and(map, 0, 1, 1),
        kvmattr_update_changes(map, 0, 1, 1, KVMATTR_WRITE, 255, no_change, NULL), kvmattr_snapshot(map, &snapshot),
        kvmattr_release(snapshot), kvmattr_restore(map, map), kvmattr_cursor_open(map, &opened),
        kvmattr_cursor_get(&cursor, 0), kvmattr_cursor_close(&cursor),
    };
    PyObject *list = PyList_New(0);
    (void)module;
    (void)none;
    for (size_t i = 0; list && i < sizeof(codes) / sizeof(codes[0]); i++) {
        PyObject *code = PyLong_FromLong(codes[i]);
        if (code == NULL || PyList_Append(list, code) < 0)
            Py_CLEAR(list);
        Py_XDECREF(code);
    }
    return list;
}

static PyObject *early_others(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return Py_BuildValue("(isKO)", kvmattr_is_imported(), kvmattr_error_text(KVMATTR_NOT_IMPORTED),
                         (unsigned long long)kvmattr_pages(NULL), kvmattr_version(NULL) ? Py_True : Py_False);
}

static PyObject *early_map_of(PyObject *module, PyObject *object)
{
    (void)module;
    return kvmattr_map_of(object) ? Py_NewRef(Py_True) : NULL;
}

static PyObject *early_view_of(PyObject *module, PyObject *object)
{
    (void)module;
    return kvmattr_view_of(object) ? Py_NewRef(Py_True) : NULL;
}

static PyObject *early_object_of(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return kvmattr_object_of(NULL);
}

static PyObject *early_import(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return kvmattr_import() < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"codes", early_codes, METH_NOARGS, NULL},     {"others", early_others, METH_NOARGS, NULL},
    {"map_of", early_map_of, METH_O, NULL},        {"view_of", early_view_of, METH_O, NULL},
    {"object_of", early_object_of, METH_NOARGS, NULL}, {"import_", early_import, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "early", NULL, 0, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_early(void) { return PyModule_Create(&definition); }
