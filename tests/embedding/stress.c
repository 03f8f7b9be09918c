/* Threads without the GIL on one shared family: a writer, readers on snapshots, readers with cursors. One of the snapshots is
 * Python's, and alone has records which the writer's updates would move together, were they any other's.
 *
 * The writer gives BLOCK pages at a time one value, then the next value, and counts how far it is. So in the state of
 * any one moment every group of BLOCK pages is uniform, and no page ever goes back. Prints "sound" if all saw that.
 * With the argument "python", one Python thread reads and writes the same family beside them, and another goes through
 * the runs of snapshots that nobody else holds while batches move what those consist of. The first asks for stats() when
 * the writer is in its third round: from then on calls are counted, by functions that take the others' place meanwhile.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvmattr.h"

enum { PAGES = 1 << 14, BLOCK = 24, GROUPS = PAGES / BLOCK, ROUNDS = 12, READERS = 2 };
enum { ALL_PAGES = 1 << 21, MIXED = 512, APART = 4 * MIXED };     /* of the snapshot, a block in four is mixed */

static kvmattr_map *map;
static const kvmattr_map *sparse;
static int finished;

static void demand(int truth, const char *what)
{
    if (!truth) {
        fprintf(stderr, "not sound: %s\n", what);
        abort();
    }
}

static void *write_groups(void *unused)
{
    for (int round = 1; round <= ROUNDS; round++)
        for (int group = 0; group < GROUPS; group++) {
            uint64_t start = (uint64_t)group * BLOCK;
            const uint64_t *version = kvmattr_version(map);
            uint64_t before = kvmattr_load(version);
            demand(kvmattr_update(map, start, start + BLOCK, (uint8_t)round, KVMATTR_WRITE, 0x0f) == 1, "update");
            demand(kvmattr_load(version) > before, "a change raises the version");
        }
    __atomic_store_n(&finished, 1, __ATOMIC_RELEASE);
    return unused;
}

/* A snapshot shows one moment: a group has one value, and no group is ahead of one before it. */
static int check_run(void *context, const kvmattr_run *run)
{
    int *last = context;
    int value = run->attributes & 0x0f; /* the other bits are Python's */
    demand(*last < 0 || value == *last || run->start % BLOCK == 0, "a group has one value in a snapshot");
    demand(*last < 0 || value <= *last, "the writer goes upwards");
    *last = value;
    return 0;
}

static void *read_snapshots(void *unused)
{
    uint64_t gfns[256];
    uint8_t values[256];
    do {
        const kvmattr_map *snapshot;
        int last = -1;
        demand(kvmattr_snapshot(map, &snapshot) == 0, "snapshot");
        demand(kvmattr_runs(snapshot, 0, (uint64_t)GROUPS * BLOCK, check_run, &last) == 0, "runs");
        for (int i = 0; i < 256; i++)
            gfns[i] = (uint64_t)(i * 61 % GROUPS) * BLOCK + (uint64_t)i % BLOCK;
        demand(kvmattr_take(snapshot, gfns, values, 256) == 0, "take");
        for (int i = 0; i < 256; i++)
            demand(kvmattr_get(snapshot, gfns[i]) == values[i], "a snapshot does not change");
        demand(kvmattr_release(snapshot) == 0, "release");
    } while (!__atomic_load_n(&finished, __ATOMIC_ACQUIRE));
    return unused;
}

static void *read_sparse(void *unused)
{
    static uint64_t gfns[ALL_PAGES / APART];
    static uint8_t values[ALL_PAGES / APART];
    for (int i = 0; i < ALL_PAGES / APART; i++)
        gfns[i] = (uint64_t)i * APART + 7;
    do {
        demand(kvmattr_take(sparse, gfns, values, ALL_PAGES / APART) == 0, "take");
        for (int i = 0; i < ALL_PAGES / APART; i++)
            demand(values[i] == 1 && kvmattr_get(sparse, gfns[i] + 1) == 0, "a snapshot of Python's does not change");
    } while (!__atomic_load_n(&finished, __ATOMIC_ACQUIRE));
    return unused;
}

static void *read_cursor(void *unused)
{
    kvmattr_cursor *cursor;
    int *seen = calloc(PAGES, sizeof *seen);
    demand(seen != NULL && kvmattr_cursor_open(map, &cursor) == 0, "cursor");
    do {
        for (uint64_t gfn = 0; gfn < (uint64_t)GROUPS * BLOCK; gfn++) {
            int value = kvmattr_cursor_get(cursor, gfn) & 0x0f;
            demand(value >= seen[gfn], "a page never goes back");
            seen[gfn] = value;
            if (gfn % 97 == 0)
                demand((kvmattr_get(map, gfn) & 0x0f) >= value, "the map is not behind the cursor");
        }
    } while (!__atomic_load_n(&finished, __ATOMIC_ACQUIRE));
    demand(kvmattr_cursor_close(cursor) == 0, "close");
    free(seen);
    return unused;
}

static const char *python_maps =
    "import kvmattr\n"
    "m = kvmattr.AttributeMap(1 << 21)\n"
    "m.put(range(7, 1 << 21, 512), 1)\n"
    "before = m.snapshot()\n"
    "m.put([gfn for gfn in range(7, 1 << 21, 512) if gfn % 2048 != 7], 0)\n"
    "sparse = m.snapshot()\n"
    "m.fill(0)\n"
    "del before\n";

static const char *python_code =
    "import threading\n"
    "def work(m, stop):\n"
    "    turn = 0\n"
    "    while not stop.is_set():\n"
    "        m.or_(0, len(m), 0x80) if turn % 2 else m.and_(0, len(m), 0x7f)\n"
    "        m[turn % len(m)], m.version, m.take([1, 2, 3]), m.run(5)\n"
    "        m.put(range(0, 2000, 3), 0x40, 1)\n"
    "        if m[0] & 0x0f > 2: m.stats()\n"
    "        turn += 1\n"
    "def look(m, stop):\n"
    "    while not stop.is_set():\n"
    "        at = 0\n"
    "        for start, end, _ in m.iter_runs():\n"
    "            sound.append(start == at)\n"
    "            at = end\n"
    "        sound.append(at == len(m))\n"
    "sound = []\n"
    "stop = threading.Event()\n"
    "threads = [threading.Thread(target=f, args=(m, stop)) for f in (work, look)]\n"
    "for thread in threads: thread.start()\n";

int main(int argc, char **argv)
{
    pthread_t writer, looker, snapshots[READERS], cursors[READERS];
    int with_python = argc > 1 && strcmp(argv[1], "python") == 0;
    PyObject *module, *names, *object, *answer;
    PyThreadState *state;

    Py_Initialize();
    if (kvmattr_import() < 0) {
        PyErr_Print();
        return 2;
    }
    module = PyImport_AddModule("__main__");
    names = PyModule_GetDict(module);
    answer = PyRun_String(python_maps, Py_file_input, names, names);
    demand(answer != NULL, "an AttributeMap");
    Py_DECREF(answer);
    object = PyDict_GetItemString(names, "m");
    map = kvmattr_map_of(object);
    demand(map != NULL && kvmattr_pages(map) == ALL_PAGES, "its map");
    sparse = kvmattr_view_of(PyDict_GetItemString(names, "sparse"));
    demand(sparse != NULL, "a view of a snapshot");
    demand(kvmattr_share(map) == 0, "share");
    if (with_python) {
        answer = PyRun_String(python_code, Py_file_input, names, names);
        demand(answer != NULL, "the Python threads");
        Py_DECREF(answer);
    }
    state = PyEval_SaveThread();
    pthread_create(&looker, NULL, read_sparse, NULL);
    pthread_create(&writer, NULL, write_groups, NULL);
    for (int i = 0; i < READERS; i++) {
        pthread_create(&snapshots[i], NULL, read_snapshots, NULL);
        pthread_create(&cursors[i], NULL, read_cursor, NULL);
    }
    pthread_join(writer, NULL);
    pthread_join(looker, NULL);
    for (int i = 0; i < READERS; i++) {
        pthread_join(snapshots[i], NULL);
        pthread_join(cursors[i], NULL);
    }
    PyEval_RestoreThread(state);
    if (with_python) {
        answer = PyRun_String("stop.set()\nfor thread in threads: thread.join()\nassert all(sound)\n", Py_file_input, names, names);
        demand(answer != NULL, "the end of the Python threads");
        Py_DECREF(answer);
    }
    demand(kvmattr_unshare(map) == 0, "unshare");
    demand(kvmattr_all(map, 0, (uint64_t)GROUPS * BLOCK, ROUNDS, 0x0f) == 1, "all is written in the end");
    answer = PyRun_String("m.validate()\n", Py_file_input, names, names);
    if (answer == NULL) {
        PyErr_Print();
        return 1;
    }
    Py_DECREF(answer);
    if (Py_FinalizeEx() < 0)
        return 1;
    puts("sound");
    return 0;
}
