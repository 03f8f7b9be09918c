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


@cython.final
cdef class Announcement:
    """One change: every chunk of it, to every listener, in this order.

    The change is from ``before`` to ``after``, two maps that nobody changes, and lies within the gfns [start,
    stop). Its runs are many where the pages are fragmented, so no more than a chunk of them is ever in memory:
    after ``prepare`` they are made again from the two maps, which gives the same.
    """

    cdef tuple listeners
    cdef object before
    cdef object after
    cdef uint64_t start
    cdef uint64_t stop
    cdef object only_chunk  # a chunk that is the only one is kept for the second phase
    cdef uint64_t at  # where the next chunk starts; after the last one: stop
    cdef object interrupt  # what was raised in the second phase and is no Exception: KeyboardInterrupt, SystemExit

    def __cinit__(self, tuple listeners, before, after, uint64_t start, uint64_t stop):
        self.listeners = listeners
        self.before, self.after = before, after
        self.start, self.stop = start, stop

    cdef object next_chunk(self):
        """The next ``MAX_RUNS`` changed runs, None after the last."""
        cdef uint64_t start = self.at
        if start >= self.stop:
            return None
        if self.only_chunk is not None:
            self.at = self.stop
            return self.only_chunk
        chunk = first_changes(self.before, self.after, start, self.stop, MAX_RUNS_A_CALL)
        if len(chunk) < MAX_RUNS_A_CALL:
            self.at = self.stop
            if start == self.start and len(chunk):
                self.only_chunk = chunk
        else:
            self.at = chunk["stop"][len(chunk) - 1]
        return chunk if len(chunk) else None

    cdef int prepare(self) except -1:
        """Call all ``prepare``; if one raises, ``abort`` what was prepared, in the same order, and raise."""
        cdef uint64_t done = 0
        self.at = self.start
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
        self.at = self.start
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
