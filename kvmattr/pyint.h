/* Python integers in, without the exceptions that Cython's own conversion raises: the store answers an
 * integer that is out of range with IndexError or ValueError, never OverflowError. */
#ifndef KVMATTR_PYINT_H
#define KVMATTR_PYINT_H

#include <Python.h>
#include <stdint.h>

/* 0: *value is set; 1: an integer beyond 64 bits (saturated: INT64_MIN or INT64_MAX); -1: not an integer,
 * TypeError is set. */
static inline int kvmattr_integer(PyObject *object, int64_t *value)
{
    int overflow;
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

#endif /* KVMATTR_PYINT_H */
