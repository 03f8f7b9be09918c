# Maps in files. A regular file is replaced by a new one beside it, once that is whole and on the disk; a device, a FIFO
# or a descriptor's name is written into.
#
# Only calls of the system's own stand between the making of the new file and its end, no Python code but the caller's
# progress: a signal's handler runs where a call is interrupted, and there `try` is around it.

cdef enum:
    SAVED_PIECE = 1 << 20       # bytes between two calls of progress

cdef object DESCRIPTOR_PLACES = re.compile(rb"/(dev/fd|proc/[^/]+/(task/[^/]+/)?fd)/[0-9]+|/dev/std(in|out|err)")


cdef object for_path(object path, object error):
    """An error of the system with the path that the user gave, whatever file it arose at."""
    return type(error)(error.errno, error.strerror, path)


cdef class _Told:
    """The caller's progress: what it raises is its own."""

    cdef object progress
    cdef object total
    cdef object raised

    def __cinit__(self, progress, total):
        self.progress = progress
        self.total = total

    cdef int tell(self, done) except -1:
        if self.progress is not None:
            try:
                self.progress(done, self.total)
            except BaseException as raised:
                self.raised = raised
                raise
        return 0


cdef int write_all(int descriptor, object data, _Told told) except -1:
    cdef Py_ssize_t done = 0
    while done < len(data):
        done += os.write(descriptor, data[done:done + SAVED_PIECE])
        told.tell(done)
    return 0


cdef int save_bytes(object path, object data, object progress) except -1:
    """Write bytes to where a path leads; OSError names the path, and leaves what was there as it was."""
    cdef _Told told = _Told(progress, len(data))
    try:
        if not os.fspath(path):     # as a name beside others it would be the directory
            raise FileNotFoundError(errno.ENOENT, "the path is empty")
        try:
            status = os.stat(path)
        except FileNotFoundError:
            status = None           # or a link that leads nowhere yet: the file is made where it leads
        if (status is not None and not stat.S_ISREG(status.st_mode)
                or DESCRIPTOR_PLACES.fullmatch(os.path.abspath(os.fsencode(path)))):
            save_into(path, data, told)
        else:
            save_in_place_of(os.path.realpath(path), status, data, told)
    except OSError as error:
        if error is told.raised or error.errno is None:
            raise
        raise for_path(path, error) from None
    return 0


cdef int save_into(object path, object data, _Told told) except -1:
    cdef int descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        write_all(descriptor, data, told)
    finally:
        os.close(descriptor)
    return 0


cdef int save_in_place_of(object target, object status, object data, _Told told) except -1:
    """Replace a regular file, or make one. `status`: of the file that is there, whose mode and owner stay."""
    cdef int directory, descriptor = -1
    # A name that nobody else has, of the path's type; what a crash leaves under it hinders no later save.
    beside = ".kvmattr-" + os.urandom(8).hex()
    # The rename is only safe on the disk when the directory is: told before anything is replaced.
    directory = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if status is not None and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        # A new file has the mode that the process's umask leaves, without a look at it.
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                             0o666 if status is None else 0o600, dir_fd=directory)
        try:
            if status is not None:
                keep_owner(descriptor, status)
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            write_all(descriptor, data, told)
            os.fsync(descriptor)
            os.replace(beside, os.path.basename(target), src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            try:
                os.unlink(beside, dir_fd=directory)
            except OSError:
                pass
            raise
        os.fsync(directory)         # the rename itself
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        os.close(directory)
    return 0


cdef int keep_owner(int descriptor, object status) except -1:
    ours = os.fstat(descriptor)
    if ours.st_uid == status.st_uid and ours.st_gid == status.st_gid:
        return 0
    try:
        os.fchown(descriptor, status.st_uid, status.st_gid)
    except PermissionError:
        raise PermissionError(errno.EPERM, f"its owner {status.st_uid}:{status.st_gid} cannot be kept") from None
    return 0


cdef object load_bytes(object path, object progress):
    """The bytes of a saved map. What the header says is checked before the rest is read."""
    cdef _Told told
    cdef object file
    with open(path, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        data = bytearray()
        while len(data) < HEADER.size and (piece := file.read(HEADER.size - len(data))):
            data += piece
        length = header_parse(data)[3]
        if stat.S_ISREG(status.st_mode) and status.st_size - HEADER.size != length:
            raise_length(status.st_size - HEADER.size, length)
        told = _Told(progress, HEADER.size + length)
        # One byte more than announced is enough to know that there are too many.
        while len(data) <= HEADER.size + length and (
                piece := file.read(min(SAVED_PIECE, HEADER.size + length + 1 - len(data)))):
            data += piece
            told.tell(min(len(data), HEADER.size + length))
    return data
