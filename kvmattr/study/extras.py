"""The optional libraries of the study, asked for where they are used; a missing one names its extra."""

from __future__ import annotations

import importlib.util

#: Library -> the extra of this package that brings it.
EXTRA_OF = {"matplotlib": "study", "jinja2": "study", "rich": "study", "pandas": "pandas", "pyroaring": "peers",
            "sortedcontainers": "peers", "unicorn": "unicorn"}


def missing(*libraries: str) -> str | None:
    """What is not installed of ``libraries``, with the command that installs it, or None.

    >>> missing("json") is None
    True
    """
    absent = [library for library in libraries if importlib.util.find_spec(library) is None]
    if not absent:
        return None
    extras = ",".join(sorted({EXTRA_OF[library] for library in absent}))
    return f"{' and '.join(absent)} not installed: pip install 'kvmattr[{extras}]'"


def require(*libraries: str) -> None:
    """Raise ImportError with the text of :func:`missing` if anything is."""
    reason = missing(*libraries)
    if reason is not None:
        raise ImportError(reason)
