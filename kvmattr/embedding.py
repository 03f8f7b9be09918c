"""Where C, C++ and Cython code finds what it compiles against."""

from __future__ import annotations

import sysconfig
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def get_include() -> str:
    """The directory of kvmattr.h and kvmattr.hpp, for a compiler's ``-I`` or ``include_dirs``.

    >>> (Path(get_include()) / "kvmattr.h").exists()
    True
    """
    return str(_PACKAGE / "include")


def includes() -> str:
    """The ``-I`` options for a file that calls ``kvmattr_import``: this Python's headers and ours.

    What ``python -m kvmattr --includes`` prints.

    >>> includes().endswith("kvmattr/include")
    True
    """
    return f"-I{sysconfig.get_path('include')} -I{get_include()}"


def cmake_directory() -> str:
    """The directory of kvmattr-config.cmake, for CMake's ``kvmattr_DIR``: ``python -m kvmattr --cmakedir``.

    >>> (Path(cmake_directory()) / "kvmattr-config.cmake").exists()
    True
    """
    return str(_PACKAGE / "cmake")


def pkgconfig_directory() -> str:
    """The directory of kvmattr.pc, for ``PKG_CONFIG_PATH``: ``python -m kvmattr --pkgconfigdir``.

    >>> (Path(pkgconfig_directory()) / "kvmattr.pc").exists()
    True
    """
    return str(_PACKAGE / "pkgconfig")
