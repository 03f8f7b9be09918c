/* What both harnesses need: a Python interpreter in the process, with the instrumented kvmattr in it. */
#ifndef FUZZ_PYTHON_H
#define FUZZ_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvmattr.h"

/* A finding: libFuzzer keeps the input that led here. */
static void demand(int truth, const char *what)
{
    if (!truth) {
        fprintf(stderr, "not sound: %s\n", what);
        if (PyErr_Occurred())
            PyErr_Print();
        abort();
    }
}

static PyObject *attribute_map; /* the class */
static PyObject *validate;      /* names of methods */

static void start_python(void)
{
    PyObject *module;
    Py_InitializeEx(0);
    module = PyImport_ImportModule("kvmattr");
    demand(module && kvmattr_import() == 0, "kvmattr is there");
    attribute_map = PyObject_GetAttrString(module, "AttributeMap");
    validate = PyUnicode_InternFromString("validate");
    demand(attribute_map && validate, "AttributeMap is there");
}

static void demand_sound(PyObject *map)
{
    PyObject *nothing = PyObject_CallMethodNoArgs(map, validate);
    demand(nothing != NULL, "validate() passes");
    Py_DECREF(nothing);
}

#endif
