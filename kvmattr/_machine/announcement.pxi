# One change on its way through the listeners.
#
# All of it is compiled, so that a signal's handler can raise inside a listener's method and nowhere else: between a
# call and the note that it was made there is no place for one.

cdef enum:
    MAX_RUNS_A_CALL = 65536  # listeners.MAX_RUNS


def report_unraisable(error, source):
    """Give an error that no caller can get to ``sys.unraisablehook``, as CPython does in destructors."""
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(source)


cdef object moved(runs, by):
    """Changed runs of a file's pages at their gfns."""
    there = runs.copy()
    for bound in ("start", "stop"):
        there[bound] = runs[bound].astype(np.int64) + by
    there.flags.writeable = False
    return there


@cython.final
cdef class Announcement:
    """One change: every chunk of it, to every listener, in this order.

    The change is from ``before`` to ``after``, two maps that nobody changes. ``spans`` says what of it listeners
    hear, and where it lies in the guest: ``(first page, page after the last, gfn of the first)`` each; of a
    change of a machine's own attributes the pages are the gfns. Its runs are many where the pages are fragmented,
    so no more than a chunk of them is ever in memory: after ``prepare`` they are made again from the two maps,
    which gives the same.
    """

    cdef tuple listeners
    cdef object before
    cdef object after
    cdef list spans
    cdef object only_chunk  # a chunk that is the only one is kept for the second phase
    cdef Py_ssize_t place  # the span in which the next chunk starts; after the last one: their number
    cdef uint64_t at  # the page at which it starts
    cdef object interrupt  # what was raised in the second phase and is no Exception: KeyboardInterrupt, SystemExit

    def __cinit__(self, tuple listeners, before, after, list spans):
        self.listeners = listeners
        self.before, self.after = before, after
        self.spans = spans

    cdef void rewind(self):
        self.place = 0
        self.at = self.spans[0][0]

    cdef object next_chunk(self):
        """The next ``MAX_RUNS`` changed runs, None after the last."""
        cdef Py_ssize_t spans = len(self.spans), room = MAX_RUNS_A_CALL
        cdef bint first = self.place == 0 and self.at == <uint64_t>self.spans[0][0]
        cdef list parts = []
        if self.only_chunk is not None and self.place < spans:
            self.place = spans
            return self.only_chunk
        while self.place < spans:
            start, stop, gfn = self.spans[self.place]
            runs = first_changes(self.before, self.after, self.at, stop, room)
            room -= len(runs)
            if len(runs):
                parts.append(runs if gfn == start else moved(runs, gfn - start))
            if not room:  # there may be more in this span
                self.at = runs["stop"][len(runs) - 1]
                break
            self.place += 1
            if self.place < spans:
                self.at = self.spans[self.place][0]
        if not parts:
            return None
        chunk = parts[0]
        if len(parts) > 1:
            chunk = np.concatenate(parts)
            chunk.flags.writeable = False
        if first and self.place == spans:
            self.only_chunk = chunk
        return chunk

    cdef int prepare(self) except -1:
        """Call all ``prepare``; if one raises, ``abort`` what was prepared, in the same order, and raise."""
        cdef uint64_t done = 0
        self.rewind()
        try:
            while (chunk := self.next_chunk()) is not None:
                for listener in self.listeners:
                    listener.prepare(chunk)
                    done += 1
        except BaseException:
            self.tell("abort", done)
            if self.interrupt is not None:
                raise self.interrupt
            raise
        return 0

    cdef int commit(self) except -1:
        """Call all ``commit``, in the order of the ``prepare`` calls."""
        return self.tell("commit", <uint64_t>-1)

    cdef int abort(self) except -1:
        """Call all ``abort``: the change was prepared by all and failed after that."""
        return self.tell("abort", <uint64_t>-1)

    cdef int tell(self, str what, uint64_t calls) except -1:
        """Make that many calls of the second phase, whatever happens in them.

        Without memory for a chunk the rest cannot be told, which goes where their own errors go. The first
        KeyboardInterrupt, or whatever else is no Exception, is kept for whoever made the change.
        """
        self.rewind()
        try:
            while calls and (chunk := self.next_chunk()) is not None:
                for listener in self.listeners:
                    if not calls:
                        break
                    calls -= 1
                    try:
                        getattr(listener, what)(chunk)
                    except BaseException as error:
                        self.take(error, listener)
        except MemoryError as error:
            report_unraisable(error, self)
        return 0

    cdef int take(self, error, source) except -1:
        if self.interrupt is None and not isinstance(error, Exception):
            self.interrupt = error
        else:
            report_unraisable(error, source)
        return 0
