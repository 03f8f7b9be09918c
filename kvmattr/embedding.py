"""Where C, C++ and Cython code finds what it compiles against."""

from __future__ import annotations

from pathlib import Path


def get_include() -> str:
    """The directory of kvmattr.h and kvmattr.hpp, for a compiler's ``-I`` or ``include_dirs``.

    >>> (Path(get_include()) / "kvmattr.h").exists()
    True
    """
    return str(Path(__file__).resolve().parent / "include")
