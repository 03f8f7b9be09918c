/* libFuzzer: the functions of kvmattr.h, each answer compared with a model.
 *
 * An input is a program. It begins with landmarks, gfns between 0 and the number of pages; the model of a map is one
 * value for each interval between two of them. Updates go from landmark to landmark, so the model is exact at every
 * size up to 2^52 pages; questions may begin and end anywhere.
 */
#include "python.h"

enum { INTERVALS = 256, MAPS = 3, SNAPSHOTS = 3, CURSORS = 3, GFNS = 64 };

typedef struct {
    const uint8_t *at, *end;
} Input;

static uint64_t marks[INTERVALS + 1];
static int intervals;

typedef struct {
    kvmattr_map *map;
    uint64_t version;
    uint8_t values[INTERVALS];
} Modelled;

typedef struct {
    const kvmattr_map *map;
    uint8_t values[INTERVALS];
} Snapshot;

typedef struct {
    kvmattr_cursor *cursor;
    int of;
} Cursor;

static Modelled maps[MAPS];
static Snapshot snapshots[SNAPSHOTS];
static Cursor cursors[CURSORS];

static int byte(Input *input)
{
    return input->at < input->end ? *input->at++ : 0;
}

static int interval_of(uint64_t gfn)
{
    int i = 0;
    while (marks[i + 1] <= gfn)
        i++;
    return i;
}

/* Some gfn inside the map. */
static uint64_t any_gfn(Input *input)
{
    int i = byte(input) % intervals;
    uint64_t length = marks[i + 1] - marks[i];
    int where = byte(input);
    return marks[i] + (where & 1 ? length - 1 - (uint64_t)(where >> 1) % length : (uint64_t)(where >> 1) % length);
}

/* ---- callbacks: they compare as they are called ---- */

typedef struct {
    const uint8_t *before, *after;      /* before: NULL for runs of one map */
    uint64_t at, stop;
    int left;                           /* calls after which the callback ends the walk; -1: never */
} Expected;

/* The next run from `at` on: in `after` alone, or of equal pairs that differ. */
static int next_run(Expected *expected, uint64_t *start, uint64_t *stop, int *before, int *after)
{
    while (expected->at < expected->stop) {
        int i = interval_of(expected->at), first = i;
        uint64_t from = expected->at, end;
        for (;;) {
            end = marks[i + 1];
            if (end >= expected->stop) {
                end = expected->stop;
                break;
            }
            if (expected->after[i + 1] != expected->after[first] ||
                (expected->before && expected->before[i + 1] != expected->before[first]))
                break;
            i++;
        }
        expected->at = end;
        if (expected->before && expected->before[first] == expected->after[first])
            continue;
        *start = from;
        *stop = end;
        *before = expected->before ? expected->before[first] : 0;
        *after = expected->after[first];
        return 1;
    }
    return 0;
}

static int saw_run(void *context, const kvmattr_run *run)
{
    Expected *expected = context;
    uint64_t start, stop;
    int before, after;
    demand(next_run(expected, &start, &stop, &before, &after), "no run more than there are");
    demand(run->start == start && run->stop == stop && run->attributes == after, "the run of the model");
    return expected->left > 0 && --expected->left == 0 ? 77 : 0;
}

static int saw_change(void *context, const kvmattr_change *change)
{
    Expected *expected = context;
    uint64_t start, stop;
    int before, after;
    demand(next_run(expected, &start, &stop, &before, &after), "no change more than there are");
    demand(change->start == start && change->stop == stop && change->before == before && change->after == after,
           "the change of the model");
    return expected->left > 0 && --expected->left == 0 ? 77 : 0;
}

/* The walk's end: it returned what the callback did, or `otherwise` and nothing is left. */
static void demand_end(Expected *expected, int result, int otherwise)
{
    uint64_t start, stop;
    int before, after;
    if (expected->left == 0)
        demand(result == 77, "the callback's value is returned");
    else
        demand(result == otherwise && !next_run(expected, &start, &stop, &before, &after), "all runs were told");
}

/* ---- operations ---- */

static int modelled_update(uint8_t *values, int first, int last, int attributes, int operation, int mask)
{
    int changed = 0;
    for (int i = first; i < last; i++) {
        int old = values[i];
        int wanted = operation == KVMATTR_WRITE ? attributes : operation == KVMATTR_OR ? old | attributes
                                                                                        : old & attributes;
        values[i] = (uint8_t)((old & ~mask) | (wanted & mask));
        changed |= values[i] != old;
    }
    return changed;
}

static void check_version(Modelled *m, int changed)
{
    uint64_t now = kvmattr_load(kvmattr_version(m->map));
    demand(changed ? now > m->version : now == m->version, "the version rises with a change and only then");
    m->version = now;
}

static void update(Modelled *m, int first, int last, int attributes, int operation, int mask)
{
    int changed = modelled_update(m->values, first, last, attributes, operation, mask);
    int result = kvmattr_update(m->map, marks[first], marks[last], (uint8_t)attributes, operation, (uint8_t)mask);
    demand(result == changed, "an update tells whether it changed anything");
    check_version(m, changed);
}

static void update_changes(Input *input, Modelled *m, int first, int last, int attributes, int operation, int mask)
{
    uint8_t before[INTERVALS];
    Expected expected = {before, m->values, marks[first], marks[last], byte(input) % 4 - 1};
    int changed, result;
    memcpy(before, m->values, sizeof before);
    changed = modelled_update(m->values, first, last, attributes, operation, mask);
    if (expected.left == 0)
        expected.left = -1;
    result = kvmattr_update_changes(m->map, marks[first], marks[last], (uint8_t)attributes, operation, (uint8_t)mask,
                                    saw_change, &expected);
    demand_end(&expected, result, changed);
    check_version(m, changed);
}

static void close_cursors(int of)
{
    for (int i = 0; i < CURSORS; i++)
        if (cursors[i].cursor && (of < 0 || cursors[i].of == of)) {
            demand(kvmattr_cursor_close(cursors[i].cursor) == 0, "a cursor closes");
            cursors[i].cursor = NULL;
        }
}

static void look(Input *input, const kvmattr_map *map, const uint8_t *values)
{
    uint64_t gfns[GFNS], start = any_gfn(input), stop = any_gfn(input);
    uint8_t out[GFNS];
    int count = byte(input) % GFNS, all = 1;
    kvmattr_run run;
    Expected whole = {NULL, values, 0, marks[intervals], -1};
    Expected part;
    demand(kvmattr_get(map, start) == values[interval_of(start)], "get");
    for (int i = 0; i < count; i++)
        gfns[i] = i & 1 ? any_gfn(input) : marks[i % intervals];
    demand(kvmattr_take(map, gfns, out, (size_t)count) == 0, "take answers");
    for (int i = 0; i < count; i++)
        demand(out[i] == values[interval_of(gfns[i])], "take");
    if (start > stop) {
        uint64_t swap = start;
        start = stop;
        stop = swap;
    }
    int mask = byte(input), wanted = values[interval_of(start)] & mask;
    for (int i = interval_of(start); start < stop && i < intervals && marks[i] < stop; i++)
        all &= (values[i] & mask) == wanted;
    demand(kvmattr_all(map, start, stop, (uint8_t)wanted, (uint8_t)mask) == all, "all");
    part = (Expected){NULL, values, start, stop, byte(input) % 4 - 1};
    if (part.left == 0)
        part.left = -1;
    demand_end(&part, kvmattr_runs(map, start, stop, saw_run, &part), 0);
    demand(kvmattr_run_at(map, start, &run) == 0 && run.start <= start && start < run.stop, "run");
    for (;;) {
        uint64_t from, to;
        int before, after;
        demand(next_run(&whole, &from, &to, &before, &after), "the run is one of the map");
        if (to > start) {
            demand(run.start == from && run.stop == to && run.attributes == after, "the run of the model");
            break;
        }
    }
}

static void refused(Input *input, Modelled *m)
{
    uint64_t pages = marks[intervals], beyond = pages + (uint64_t)byte(input) * (UINT64_MAX / 255 - (pages >> 7));
    uint64_t other = any_gfn(input);
    kvmattr_run run;
    kvmattr_map *made = NULL;
    if (beyond < pages)
        beyond = pages;
    demand(kvmattr_get(m->map, beyond) == KVMATTR_BAD_GFN, "get beyond the map");
    demand(kvmattr_run_at(m->map, beyond, &run) == KVMATTR_BAD_GFN, "run beyond the map");
    demand(kvmattr_take(m->map, &beyond, &(uint8_t){0}, 1) == KVMATTR_BAD_GFN, "take beyond the map");
    if (beyond > pages)
        demand(kvmattr_update(m->map, other, beyond, 1, KVMATTR_WRITE, 0xff) == KVMATTR_BAD_RANGE, "a stop beyond");
    demand(kvmattr_update(m->map, other + 1, other, 1, KVMATTR_WRITE, 0xff) == KVMATTR_BAD_RANGE, "start > stop");
    demand(kvmattr_update(m->map, 0, pages, 1, 3 + byte(input), 0xff) == KVMATTR_BAD_OPERATION, "no such operation");
    demand(kvmattr_update((kvmattr_map *)(uintptr_t)snapshots[0].map, 0, 0, 1, 0, 0xff) ==
               (snapshots[0].map ? KVMATTR_READ_ONLY : KVMATTR_BAD_MAP), "a snapshot is read-only");
    demand(kvmattr_create((UINT64_C(1) << 52) + 1 + (uint64_t)byte(input), 0, &made) == KVMATTR_BAD_PAGES, "too many");
    demand(kvmattr_take(m->map, NULL, NULL, 1) == KVMATTR_BAD_POINTER, "NULL");
    demand(kvmattr_release(m->map) == KVMATTR_NOT_YOURS, "a map is no snapshot");
    check_version(m, 0);
}

static void run_program(Input *input, int shared)
{
    static const uint8_t masks[] = {0xff, 0xff, 0xff, 0x01, 0x0f, 0xf0, 0x00, 0x55};
    static const uint8_t kept[] = {0x01, 0x03, 0x07, 0x0f, 0x11, 0xff, 0x81, 0xff};
    int kind = byte(input);
    int default_value = byte(input);
    for (int i = 0; i < MAPS; i++)
        maps[i].map = NULL;
    memset(snapshots, 0, sizeof snapshots);
    memset(cursors, 0, sizeof cursors);
    demand(kvmattr_create(marks[intervals], (uint8_t)default_value, &maps[0].map) == 0, "create");
    memset(maps[0].values, default_value, sizeof maps[0].values);
    maps[0].version = kvmattr_load(kvmattr_version(maps[0].map));
    if (shared)
        demand(kvmattr_share(maps[0].map) == 0, "share");
    while (input->at < input->end) {
        int code = byte(input), which = (code >> 4) % MAPS;
        Modelled *m = &maps[which];
        if (!m->map)
            m = &maps[which = 0];
        switch (code & 15) {
        case 0: case 1: case 2: case 3: case 4: case 5: {
            int first = byte(input) % (intervals + 1), last = byte(input) % (intervals + 1), how = byte(input);
            int attributes = byte(input) & kept[kind & 7], swap = first;
            if (first > last)
                first = last, last = swap;
            if ((code & 15) == 5)
                update_changes(input, m, first, last, attributes, how % 3, masks[how >> 5]);
            else if ((code & 15) == 4)      /* every other interval, values that rise */
                for (int i = first; i < last; i += 2)
                    update(m, i, i + 1, (attributes + i) & kept[kind & 7], how % 3, masks[how >> 5]);
            else
                update(m, first, last, attributes, how % 3, masks[how >> 5]);
            break;
        }
        case 6: case 7:
            look(input, m->map, m->values);
            break;
        case 8: {
            Snapshot *s = &snapshots[byte(input) % SNAPSHOTS];
            if (s->map)
                look(input, s->map, s->values);
            break;
        }
        case 9: {
            Snapshot *s = &snapshots[byte(input) % SNAPSHOTS];
            if (s->map)
                demand(kvmattr_release(s->map) == 0, "release");
            demand(kvmattr_snapshot(m->map, &s->map) == 0, "snapshot");
            memcpy(s->values, m->values, sizeof s->values);
            break;
        }
        case 10: {
            Snapshot *s = &snapshots[byte(input) % SNAPSHOTS];
            if (s->map) {
                demand(kvmattr_restore(m->map, s->map) == 0, "restore");
                memcpy(m->values, s->values, sizeof m->values);
                check_version(m, 1);
            }
            break;
        }
        case 11: {
            int to = byte(input) % MAPS;
            if (to != which && to != 0) {       /* map 0 stays: it is the one that shares the family */
                close_cursors(to);
                if (maps[to].map)
                    demand(kvmattr_destroy(maps[to].map) == 0, "destroy");
                demand(kvmattr_copy(m->map, &maps[to].map) == 0, "copy");
                memcpy(maps[to].values, m->values, sizeof m->values);
                maps[to].version = kvmattr_load(kvmattr_version(maps[to].map));
            }
            break;
        }
        case 12: {
            Snapshot *s = &snapshots[byte(input) % SNAPSHOTS];
            Expected expected = {s->values, m->values, any_gfn(input), any_gfn(input), byte(input) % 4 - 1};
            if (expected.left == 0)
                expected.left = -1;
            if (s->map && expected.at <= expected.stop) {
                uint64_t start = expected.at;
                demand_end(&expected, kvmattr_diff(m->map, s->map, start, expected.stop, saw_change, &expected), 0);
            }
            break;
        }
        case 13: {
            Cursor *c = &cursors[byte(input) % CURSORS];
            if (c->cursor)
                demand(kvmattr_cursor_close(c->cursor) == 0, "a cursor closes");
            demand(kvmattr_cursor_open(m->map, &c->cursor) == 0, "a cursor opens");
            c->of = which;
            break;
        }
        case 14:
            for (int i = 0; i < CURSORS; i++)
                for (int turn = 0; cursors[i].cursor && turn < 4; turn++) {
                    uint64_t gfn = any_gfn(input);
                    demand(kvmattr_cursor_get(cursors[i].cursor, gfn) ==
                               maps[cursors[i].of].values[interval_of(gfn)], "a cursor's page");
                }
            demand(!cursors[0].cursor || kvmattr_cursor_get(cursors[0].cursor, marks[intervals]) == KVMATTR_BAD_GFN,
                   "a cursor beyond the map");
            break;
        default:
            refused(input, m);
        }
    }
    for (int i = 0; i < MAPS; i++)
        if (maps[i].map) {
            Expected whole = {NULL, maps[i].values, 0, marks[intervals], -1};
            demand_end(&whole, kvmattr_runs(maps[i].map, 0, marks[intervals], saw_run, &whole), 0);
        }
    for (int i = 0; i < SNAPSHOTS; i++)
        if (snapshots[i].map) {
            Expected whole = {NULL, snapshots[i].values, 0, marks[intervals], -1};
            demand_end(&whole, kvmattr_runs(snapshots[i].map, 0, marks[intervals], saw_run, &whole), 0);
        }
    close_cursors(-1);
    PyObject *object = kvmattr_object_of(maps[0].map);
    demand(object != NULL, "an AttributeMap of a map");
    demand_sound(object);               /* of the whole family */
    Py_DECREF(object);
    if (shared)
        demand(kvmattr_unshare(maps[0].map) == 0, "unshare");
    for (int i = 0; i < SNAPSHOTS; i++)
        if (snapshots[i].map)
            demand(kvmattr_release(snapshots[i].map) == 0, "release");
    for (int i = 0; i < MAPS; i++)
        if (maps[i].map)
            demand(kvmattr_destroy(maps[i].map) == 0, "destroy");
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    start_python();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint64_t limit = UINT64_C(1) << 52;
    Input input = {data, data + size};
    int first = byte(&input), wanted = 1 + (first & 127);
    uint64_t at = 0;
    for (intervals = 0; intervals < wanted && at < limit && (input.at < input.end || !intervals);) {
        int code = byte(&input), amount = code >> 3;
        uint64_t step;
        switch (code & 7) {
        case 0: case 1: step = 1 + (uint64_t)amount; break;
        case 2: step = 512 - (at & 511) + (uint64_t)amount % 3 - (at & 511 ? 1 : 0); break;
        case 3: step = UINT64_C(512) * (1 + (uint64_t)amount); break;
        case 4: step = UINT64_C(1) << 18 << amount % 3 * 9; break;
        case 5: step = (UINT64_C(1) << amount) + 1; break;
        case 6: step = (UINT64_C(1) << (amount + 20)) - 1; break;
        default: step = 510 + (uint64_t)amount % 5; break;
        }
        step += !step;
        at = step > limit - at ? limit : at + step;
        marks[++intervals] = at;
    }
    run_program(&input, first >> 7);
    return 0;
}
