"""How a program comes to call the preloaded library, and which programs cannot be made to."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

#: Set for the program: where the server is, and which of the two the library is to be.
SOCKET, MODE = "KVMATTR_FAKE_SOCKET", "KVMATTR_FAKE_MODE"
_LIBRARY = Path(__file__).parent / "client" / "libkvmattr_fake.so"

_PT_INTERP = 3
_SCRIPT_DEPTH = 4   # interpreters that are scripts themselves, as many as the kernel follows


class CannotCatch(Exception):
    """The calls of this program cannot be caught: the text says why and what to do."""


def library() -> Path:
    """The preloaded library; CannotCatch where there is none."""
    if not sys.platform.startswith("linux"):
        raise CannotCatch(f"fake and shadow are for programs of Linux, this is {sys.platform}")
    if not _LIBRARY.exists():
        raise CannotCatch(f"{_LIBRARY.name} is not part of this installation: build kvmattr again (pip install .)")
    return _LIBRARY


def environment(path: str, mode: Literal["fake", "shadow"], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program whose calls are to be caught; what is preloaded already stays, behind ours."""
    made = dict(os.environ if given is None else given)
    others = made.get("LD_PRELOAD", "").replace(":", " ").split()
    preloaded = [_without_separators(library(), Path(path).parent), *others]
    return made | {"LD_PRELOAD": ":".join(preloaded), SOCKET: path, MODE: mode}


def _without_separators(file: Path, place: Path) -> str:
    """A name for the file that LD_PRELOAD can hold, which is parted at spaces and colons."""
    if not any(character in " :" for character in str(file)):
        return str(file)
    link = place / "library.so"
    if not link.is_symlink():
        link.symlink_to(file)
    return str(link)


def check_program(name: str, search: str | None = None) -> None:
    """Raise CannotCatch for a program that would not load the library; FileNotFoundError if there is none.

    A script is judged by its interpreter. What cannot be read is not judged.
    """
    found = shutil.which(name, path=search)
    if found is None:
        raise FileNotFoundError(2, "command not found", name)
    path = os.path.realpath(found)
    for _ in range(_SCRIPT_DEPTH):
        try:
            with open(path, "rb") as file:
                head = file.read(4096)
                _check_rights(name, path)
                if head[:4] == b"\x7fELF":
                    _check_elf(name, path, head)
                    return
        except OSError:
            return
        if head[:2] != b"#!":
            return
        words = head[2:].split(b"\n", 1)[0].split()
        if not words:
            return
        path = os.fsdecode(words[0])
        if os.path.basename(path) == "env" and len(words) > 1:
            path = shutil.which(os.fsdecode(words[-1] if words[1] == b"-S" else words[1])) or path


def _check_rights(name: str, path: str) -> None:
    mode = os.stat(path).st_mode
    if mode & (stat.S_ISUID | stat.S_ISGID) and os.geteuid() != 0:
        raise CannotCatch(f"{name}: {path} runs with its owner's rights (setuid), and such programs preload nothing: "
                          "run a copy without the bit")
    try:
        capabilities = os.getxattr(path, "security.capability")
    except OSError:
        return
    if capabilities and os.geteuid() != 0:
        raise CannotCatch(f"{name}: {path} has file capabilities, and such programs preload nothing: run a copy "
                          "without them")


def _check_elf(name: str, path: str, head: bytes) -> None:
    """Whether a program has a dynamic linker, of our own kind: else nothing is preloaded."""
    own = Path(sys.executable).read_bytes()[:20] if sys.executable else head[:20]
    if head[4:6] != own[4:6] or head[18:20] != own[18:20]:
        raise CannotCatch(f"{name}: {path} is a program for another machine than this Python's (32 bits, or emulated), "
                          "which cannot load our library")
    order = "<" if head[5] == 1 else ">"
    if head[4] != 2 or len(head) < 64:
        return
    offset, size, count = (struct.unpack_from(order + form, head, at)[0]
                           for form, at in (("Q", 32), ("H", 54), ("H", 56)))
    kinds = [struct.unpack_from(order + "I", head, offset + each * size)[0] for each in range(count)
             if offset + each * size + 4 <= len(head)]
    if _PT_INTERP not in kinds:
        raise CannotCatch(f"{name}: {path} is linked statically, so nothing can be preloaded into it: link it "
                          "dynamically (its ELF header has no PT_INTERP)")
