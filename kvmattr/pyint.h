/* Python integers in, without the exceptions that Cython's own conversion raises: the store answers an
 * integer that is out of range with IndexError or ValueError, never OverflowError. */
#ifndef KVMATTR_PYINT_H
#define KVMATTR_PYINT_H

#include <Python.h>
#include <stdint.h>

/* An int of one digit, as a gfn below 4 TiB is: read without a call. */
static inline int kvmattr_short_integer(PyObject *object, int64_t *value)
{
    if (!PyLong_CheckExact(object))
        return 0;
#if PY_VERSION_HEX >= 0x030C0000
    if (!PyUnstable_Long_IsCompact((PyLongObject *)object))
        return 0;
    *value = PyUnstable_Long_CompactValue((PyLongObject *)object);
#else
    Py_ssize_t size = Py_SIZE(object);      /* digits, negative for a negative number */
    if (size < -1 || size > 1)
        return 0;
    *value = size * (int64_t)((PyLongObject *)object)->ob_digit[0];
#endif
    return 1;
}

/* 0: *value is set; 1: an integer beyond 64 bits (saturated: INT64_MIN or INT64_MAX); -1: not an integer,
 * TypeError is set. */
static inline int kvmattr_integer(PyObject *object, int64_t *value)
{
    int overflow;
    if (kvmattr_short_integer(object, value))
        return 0;
    if (PyLong_Check(object)) {
        *value = PyLong_AsLongLongAndOverflow(object, &overflow);
    } else {
        PyObject *index = PyNumber_Index(object);
        if (index == NULL)
            return -1;
        *value = PyLong_AsLongLongAndOverflow(index, &overflow);
        Py_DECREF(index);
    }
    if (overflow) {
        *value = overflow > 0 ? INT64_MAX : INT64_MIN;
        return 1;
    }
    return 0;
}

/* The integers 0 .. 255, so that attributes are handed out without a call, and False and True. Filled at import, kept for
 * ever. */
static PyObject *kvmattr_attributes[256], *kvmattr_truths[2];

static inline int kvmattr_fill_attributes(void)
{
    kvmattr_truths[0] = Py_False;
    kvmattr_truths[1] = Py_True;
    for (int value = 0; value < 256; value++)
        if (kvmattr_attributes[value] == NULL &&        /* else the module is imported again */
            (kvmattr_attributes[value] = PyLong_FromLong(value)) == NULL)
            return -1;
    return 0;
}

static inline PyObject *kvmattr_attribute(uint8_t value)
{
    Py_INCREF(kvmattr_attributes[value]);
    return kvmattr_attributes[value];
}

/* True or False without a branch: whether a page changed would be foreseen wrongly every other time. */
static inline PyObject *kvmattr_truth(int value)
{
    PyObject *truth = kvmattr_truths[value != 0];
    Py_INCREF(truth);
    return truth;
}

#endif /* KVMATTR_PYINT_H */
