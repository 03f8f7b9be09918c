"""What is kept between runs: builds, sources and installed projects, each complete or not there at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kvmattr.gate.verdict import CannotTell

#: What nobody has used for so many days is removed when something new is kept.
_KEPT_DAYS = 30


def directory() -> Path:
    """$XDG_CACHE_HOME/kvmattr-gate, or ~/.cache/kvmattr-gate."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvmattr-gate"


def kept(name: str, fill: Callable[[Path], None]) -> Path:
    """The cached directory of a name, made now unless it is there: complete or not at all. Of two that make it at once
    the first one wins."""
    place = directory() / name
    if not place.exists():
        _settle(place, fill)
    with contextlib.suppress(OSError):      # a cache that others made and we may only read
        os.utime(place)                     # needed: it is not forgotten yet
    return place


def _settle(place: Path, fill: Callable[[Path], None]) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        making = tempfile.TemporaryDirectory(prefix="making-", dir=place.parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise CannotTell(f"builds cannot be kept: {error}; XDG_CACHE_HOME names another place") from None
    with making as scratch:
        fill(Path(scratch))
        try:
            Path(scratch).rename(place)
        except OSError:
            if not place.exists():
                raise
    _forget(place.parent)


def _forget(cache: Path) -> None:
    """Remove what has not been used for long, and what a killed gate left half made."""
    for place in cache.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - place.stat().st_mtime > 86400 * _KEPT_DAYS:
                shutil.rmtree(place, ignore_errors=True)
