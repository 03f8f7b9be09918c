"""Another thread's write between any two loads of an array, without threads and without luck: ``read_watch.c``."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

#: At most so many moments a call: the first and the last loads, and some between.
MOMENTS = 20
_NEVER = ctypes.c_size_t(-1).value


@cache
def _library() -> ctypes.CDLL:
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        pytest.skip("lets each load through by the trap flag of x86-64, under Linux")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / "read_watch.so"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", made,
                        Path(__file__).with_suffix(".c")], check=True)
        library = ctypes.CDLL(str(made))
    library.watch_memory.restype = ctypes.c_void_p
    library.watch_memory.argtypes = [ctypes.c_size_t]
    library.watch_begin.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
    library.watch_end.restype = ctypes.c_size_t
    return library


class Watched:
    """An array whose loads are counted while a call has it; ``over`` is what another thread writes."""

    def __init__(self, array: np.ndarray, over: np.ndarray) -> None:
        assert array.dtype == over.dtype
        assert array.shape == over.shape
        page = os.sysconf("SC_PAGESIZE")
        self._good = array
        self._bytes = -(-array.nbytes // page) * page
        self._memory = _library().watch_memory(self._bytes)
        assert self._memory is not None
        whole = (ctypes.c_char * self._bytes).from_address(self._memory)
        self.array = np.frombuffer(whole, array.dtype, array.size).reshape(array.shape)
        self.loads = 0
        self._over = over.tobytes().ljust(self._bytes, b"\0")

    def during(self, call: Callable[[np.ndarray], object], moment: int = _NEVER) -> object:
        """Call it, and write before the load of this number; :attr:`loads` is how many there were."""
        self.array[...] = self._good
        assert _library().watch_begin(self._memory, self._bytes, self._over, moment) == 0
        try:
            return call(self.array)
        finally:
            self.loads = _library().watch_end()


def moments(watched: Watched, call: Callable[[np.ndarray], object]) -> Iterator[int]:
    """The loads before which another thread may write."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        watched.during(call)
    loads = watched.loads
    assert loads
    yield from sorted({int(each) for each in np.linspace(0, loads, min(loads + 1, MOMENTS))}
                      | set(range(min(5, loads))) | set(range(max(0, loads - 5), loads)))
