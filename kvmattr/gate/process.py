"""This side of the pipe to a worker: start one in a build, ask it, make sure of what it loaded."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kvmattr.gate.verdict import CannotTell, Usage

#: Seconds after which a silent worker is taken for hung.
_SILENCE = 600


@functools.cache
def without_randomisation() -> tuple[str, ...]:
    """What to start a process with so that its addresses are the same each time; nothing where the machine has
    no setarch or, as many containers do, forbids it."""
    prefix = ("setarch", platform.machine(), "--addr-no-randomize")
    if shutil.which(prefix[0]) is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        return ()
    return prefix


def start(arguments: Sequence[str], **words: Any) -> subprocess.Popen[bytes]:
    """A process that does not hear Ctrl-C, from its first moment on: that reaches the whole group of a terminal,
    and is this process's to act on. One that came meanwhile is heard here afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(arguments, **words)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class CellError(Exception):
    """A scenario raised; the worker lives on."""


@dataclass(frozen=True)
class Side:
    """What a worker imports: the kvmattr in the directory ``tree``, and before it what lies in ``paths``. With
    ``alone`` it does not import what lies beside a scenario file: that belongs to another commit. ``working``: the
    working tree that the project is of, of which it may load nothing, and where the side's sources lie."""

    tree: Path
    paths: tuple[Path, ...] = ()
    alone: bool = False
    working: tuple[Path, Path] | None = None


class Worker:
    """A process that has loaded the kvmattr in the directory ``tree`` (or of a side), and scenarios."""

    def __init__(self, tree: Path | Side, sources: Sequence[str], *, plant: str | None = None,
                 prefix: Sequence[str] = (), environment: dict[str, str] | None = None) -> None:
        side = tree if isinstance(tree, Side) else Side(tree)
        tree, gate = side.tree, Path(__file__).parent
        # The same hashes and messages everywhere.
        variables = {**os.environ, "PYTHONHASHSEED": "0", "LC_ALL": "C", **(environment or {})}
        self._pipe, theirs = Pipe()
        with theirs:
            # What scenarios print goes to stderr. All numbers are of one length, as all paths in the cache are.
            self._process = start(
                [*prefix, sys.executable, "-P", str(gate / "worker.py"), f"{theirs.fileno():05}", str(gate), str(tree),
                 "alone" if side.alone else "beside", *map(str, side.paths)],
                stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()], env=variables)
        try:
            try:
                self.loaded: dict[str, Any] = self.ask("load", sources=list(sources), plant=plant,
                                                       working=side.working and [*map(str, side.working)])
            except CellError as error:
                raise Usage(str(error)) from None
            if not Path(self.loaded["file"]).resolve().is_relative_to(tree.resolve()):
                raise CannotTell(f"wrong build loaded: {self.loaded['file']} instead of one in {tree}")
        except BaseException:
            self.close(at_once=True)
            raise

    def ask(self, do: str, **words: Any) -> Any:
        """Have something done; its result. CellError if it raised there."""
        where = f"{do} of {words['name']}/{words['size']}" if "size" in words else do
        try:
            self._pipe.send_bytes(json.dumps({"do": do, **words}).encode())
            if not self._pipe.poll(_SILENCE):
                raise CannotTell(f"the worker did not answer {where} in {_SILENCE} s")
            answer = json.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionError):
            raise CannotTell(f"the worker died ({self._how()}) in {where}") from None
        if "error" in answer:
            raise CellError(answer["error"])
        return answer["result"]

    def _how(self) -> str:
        """How the process ended: a signal by its name, else its exit code."""
        code = self._process.wait()
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"exit code {code}"

    def close(self, *, at_once: bool = False) -> None:
        """End the process: by the end of its requests, or by force ``at_once`` or when it does not listen."""
        self._pipe.close()
        if at_once:
            self._process.kill()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        # After Ctrl-C nobody waits for the end of what the worker is at.
        self.close(at_once=error is not None)
