/* libFuzzer: AttributeMap.from_bytes of anything. What begins as a saved map does has its lengths and checksums mended
 * after each mutation, so that the mutations reach the reader of the records behind them.
 *
 * Either ValueError, or a map that validate() passes and that goes out and in again as the same bytes and pages.
 */
#include "python.h"

enum { HEADER = 44, DEFAULT = 24, BODY_CRC = 28, LENGTH = 32, HEADER_CRC = 40 };

static uint32_t crc_table[256];

static uint32_t crc32_of(const uint8_t *data, size_t size)
{
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < size; i++)
        crc = crc >> 8 ^ crc_table[(crc ^ data[i]) & 0xff];
    return ~crc;
}

static void store(uint8_t *where, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        where[i] = (uint8_t)(value >> 8 * i);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
        crc_table[i] = crc;
    }
    start_python();
    return 0;
}

static PyObject *read_map(PyObject *data)
{
    static PyObject *name;
    if (!name)
        name = PyUnicode_InternFromString("from_bytes");
    return PyObject_CallMethodOneArg(attribute_map, name, data);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    static PyObject *to_bytes;
    PyObject *data = PyBytes_FromStringAndSize((const char *)input, (Py_ssize_t)size), *map, *again, *out;
    uint8_t *bytes = (uint8_t *)PyBytes_AS_STRING(data);
    if (!to_bytes)
        to_bytes = PyUnicode_InternFromString("to_bytes");
    if (size >= HEADER && memcmp(bytes, "kvmattr\x1a", 8) == 0) {
        store(bytes + BODY_CRC, crc32_of(bytes + HEADER, size - HEADER), 4);
        store(bytes + LENGTH, size - HEADER, 8);
        store(bytes + HEADER_CRC, crc32_of(bytes, HEADER_CRC), 4);
    }
    map = read_map(data);
    if (map == NULL) {
        demand(PyErr_ExceptionMatches(PyExc_ValueError), "what cannot be read is a ValueError");
        PyErr_Clear();
    } else {
        demand_sound(map);
        out = PyObject_CallMethodNoArgs(map, to_bytes);
        demand(out != NULL, "to_bytes");
        again = read_map(out);
        demand(again != NULL && PyObject_RichCompareBool(map, again, Py_EQ) == 1, "out and in again is the same map");
        Py_DECREF(out);
        Py_DECREF(again);
        Py_DECREF(map);
    }
    Py_DECREF(data);
    return 0;
}
