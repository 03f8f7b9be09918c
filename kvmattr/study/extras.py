"""The optional libraries of the study, asked for where they are used; a missing one names its extra."""

from __future__ import annotations

import importlib.util


def require(*modules: str, extra: str = "study") -> None:
    """Raise ImportError that names the command which installs what is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(f"this needs {' and '.join(missing)}: pip install 'kvmattr[{extra}]'")
