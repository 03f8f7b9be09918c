"""Optional libraries, asked for where they are used; a missing one names the extra that brings it."""

from __future__ import annotations

import importlib.util

#: Library -> the extra of this package that brings it.
EXTRA_OF = {"matplotlib": "study", "jinja2": "study", "rich": "study", "pandas": "pandas", "pyroaring": "peers",
            "sortedcontainers": "peers", "unicorn": "unicorn"}


def missing(*libraries: str, what: str = "") -> str | None:
    """What is not installed of ``libraries``, with the command that installs it, or None.

    ``what`` needs them; the text begins with it.

    >>> missing("json") is None
    True
    """
    absent = [library for library in libraries if importlib.util.find_spec(library) is None]
    if not absent:
        return None
    names, extras = " and ".join(absent), ",".join(sorted({EXTRA_OF[library] for library in absent}))
    return f"{f'{what} needs {names}' if what else f'{names} not installed'}: pip install 'kvmattr[{extras}]'"


def require(*libraries: str, what: str = "") -> None:
    """Raise ImportError with the text of :func:`missing` if anything is."""
    reason = missing(*libraries, what=what)
    if reason is not None:
        raise ImportError(reason)
