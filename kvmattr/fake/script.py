"""Guest scripts: what a vCPU does, line by line, in place of instructions.

::

    # comment
    read GPA [SIZE] [private|shared]
    write GPA [SIZE] [private|shared]
    exec GPA [private|shared]
    hypercall map_gpa_range GPA PAGES private|shared
    halt
    vcpu N

Numbers are decimal or 0x hexadecimal; SIZE is in bytes, 1 by default. ``private`` and ``shared`` say how the guest
itself means an access (a bit of its page tables, on hardware); without a word it is as the attribute says. The lines
behind ``vcpu N`` are those of that vCPU; without one they are vCPU 0's. A vCPU plays its lines in each VM from the
first on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EFAULT
from pathlib import Path
from typing import NamedTuple

from kvmattr import uapi
from kvmattr.faults import Exit
from kvmattr.protection import Access
from kvmattr.vm import VM

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}", re.ASCII)
_ACCESSES = {"read": Access.READ, "write": Access.WRITE, "exec": Access.EXEC}
_EXPECTED = {
    "read": "read GPA [SIZE] [private|shared]",
    "write": "write GPA [SIZE] [private|shared]",
    "exec": "exec GPA [private|shared]",
    "hypercall": "hypercall map_gpa_range GPA PAGES private|shared",
    "halt": "halt",
    "vcpu": "vcpu N",
}
#: vCPUs that a script may name.
_VCPUS = 4096


class ScriptError(ValueError):
    """A line of a guest script that says nothing: the text names the file, the line and what was expected."""


class Touch(NamedTuple):
    """The guest reads, writes or executes."""

    access: Access
    gpa: int
    size: int
    private: bool | None
    line: int


class MapGpaRange(NamedTuple):
    """The guest asks its VMM to convert a range: KVM_HC_MAP_GPA_RANGE."""

    gpa: int
    npages: int
    private: bool
    line: int


class Halt(NamedTuple):
    """HLT."""

    line: int


Step = Touch | MapGpaRange | Halt


@dataclass(frozen=True)
class Script:
    """A guest script: the steps of each vCPU.

    >>> Script.parse("write 0x1000 8 private").steps[0][0].gpa
    4096
    >>> Script.parse("jump 0x1000")
    Traceback (most recent call last):
    kvmattr.fake.script.ScriptError: <script>:1: 'jump': expected read, write, exec, hypercall, halt or vcpu
    """

    steps: dict[int, tuple[Step, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, name: str = "<script>") -> Script:
        """The script of a text; ScriptError for a line that is none."""
        steps: dict[int, list[Step]] = {}
        vcpu = 0
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                if words[0] == "vcpu":
                    if len(words) != 2:
                        raise ValueError(f"expected {_EXPECTED['vcpu']!r}")
                    vcpu = _number(words[1], "N", _VCPUS)
                else:
                    steps.setdefault(vcpu, []).append(_step(words, number))
            except ValueError as wrong:
                raise ScriptError(f"{name}:{number}: {wrong}") from None
        return cls({vcpu: tuple(each) for vcpu, each in steps.items()})

    @classmethod
    def read(cls, place: str | os.PathLike[str]) -> Script:
        """The script of a file; OSError if it cannot be read, ScriptError for what it says."""
        try:
            text = Path(place).read_text()
        except UnicodeDecodeError:
            raise ScriptError(f"{os.fspath(place)}: is no text") from None
        return cls.parse(text, os.fspath(place))


def _number(word: str, what: str, limit: int = 1 << 64) -> int:
    if _NUMBER.fullmatch(word) is None:
        raise ValueError(f"{word[:40]!r}: expected a decimal or 0x number for {what}")
    value = int(word, 16) if word[:2] in ("0x", "0X") else int(word)
    if value >= limit:
        raise ValueError(f"{what} {word}: must be below {limit:#x}")
    return value


def _step(words: list[str], line: int) -> Step:
    name = words[0]
    if name not in _EXPECTED:
        raise ValueError(f"{name[:40]!r}: expected read, write, exec, hypercall, halt or vcpu")
    expected = ValueError(f"expected {_EXPECTED[name]!r}, found {' '.join(words)[:80]!r}")
    if name == "halt":
        if len(words) != 1:
            raise expected
        return Halt(line)
    private = {"private": True, "shared": False}.get(words[-1])
    numbers = words[1:] if private is None else words[1:-1]
    if name == "hypercall":
        if len(numbers) != 3 or numbers[0] != "map_gpa_range" or private is None:
            raise expected
        return MapGpaRange(_number(numbers[1], "GPA"), _number(numbers[2], "PAGES"), private, line)
    if len(numbers) not in ((1,) if name == "exec" else (1, 2)):
        raise expected
    gpa = _number(numbers[0], "GPA")
    size = _number(numbers[1], "SIZE") if len(numbers) == 2 else 1
    if not size or gpa + size > 1 << 64:
        raise ValueError(f"GPA {gpa:#x}, SIZE {size:#x}: must be at least 1 byte and end at or below 2^64")
    return Touch(_ACCESSES[name], gpa, size, private, line)


class Stop(NamedTuple):
    """Why KVM_RUN returns: the exit, its fields of ``struct kvm_run``, and the errno, 0 for none."""

    reason: int
    fields: dict[str, int]
    errno: int = 0


#: Instructions come from memory; where there is none, KVM gives up.
_NOTHING_TO_FETCH = Stop(uapi.KVM_EXIT_INTERNAL_ERROR, {"suberror": uapi.KVM_INTERNAL_ERROR_EMULATION})


class Hypercall(NamedTuple):
    """A hypercall that the guest made, and what the VMM left in ``hypercall.ret`` for it."""

    call: MapGpaRange
    result: int


class Guest:
    """The vCPUs of one VM at their script: where each is, and what its hypercalls came to."""

    def __init__(self, vm: VM, script: Script) -> None:
        self._vm = vm
        self._script = script
        self._at: dict[int, int] = {}
        # What a vCPU waits for: to be run again after an exit that completes its line.
        self._completing: dict[int, Step] = {}
        #: KVM_ENABLE_CAP of KVM_CAP_EXIT_HYPERCALL: which hypercalls leave to user space.
        self.exits_on_hypercalls = 0
        #: In the order in which they were answered.
        self.hypercalls: list[Hypercall] = []

    def line(self, vcpu: int) -> int | None:
        """The line of the script that a vCPU plays next; None at its end."""
        steps = self._script.steps.get(vcpu, ())
        at = self._at.get(vcpu, 0)
        return steps[at].line if at < len(steps) else None

    def complete(self, vcpu: int, result_of_hypercall: Callable[[], int]) -> None:
        """End the line at which a vCPU left to user space: ``result_of_hypercall`` reads what the VMM wrote into
        ``hypercall.ret``. KVM_RUN does this first, also where ``immediate_exit`` lets it do nothing else."""
        completing = self._completing.pop(vcpu, None)
        if isinstance(completing, MapGpaRange):
            self.hypercalls.append(Hypercall(completing, result_of_hypercall()))

    def run(self, vcpu: int) -> Stop:
        """Play a vCPU's lines until one leaves to user space; at the end of the script, a shutdown.

        A line that left with an errno is played again by the next call, as is a fetch where no memory is; one that
        left without (MMIO, a hypercall) is done then.
        """
        steps = self._script.steps.get(vcpu, ())
        while (at := self._at.get(vcpu, 0)) < len(steps):
            step = steps[at]
            stop = self._play(step)
            done = stop is None or not (stop.errno or stop is _NOTHING_TO_FETCH)
            if done:
                self._at[vcpu] = at + 1
            if stop is not None:
                if done:
                    self._completing[vcpu] = step
                return stop
        # Without any memory a processor cannot even fetch the instruction by which it would end.
        return Stop(uapi.KVM_EXIT_SHUTDOWN, {}) if len(self._vm.memslots) else _NOTHING_TO_FETCH

    def _play(self, step: Step) -> Stop | None:
        if isinstance(step, Halt):
            return Stop(uapi.KVM_EXIT_HLT, {})
        if isinstance(step, MapGpaRange):
            return self._hypercall(step)
        stopped = self._vm.access(step.gpa, step.access, step.size, step.private)
        if stopped is not None and stopped.reason == uapi.KVM_EXIT_MMIO and step.access == Access.EXEC:
            return _NOTHING_TO_FETCH
        return None if stopped is None else stop_of(stopped)

    def _hypercall(self, step: MapGpaRange) -> Stop | None:
        """What arch/x86/kvm/x86.c does before it leaves; what it refuses itself, only the guest sees."""
        page = uapi.PAGE_SIZE
        if not self.exits_on_hypercalls >> uapi.KVM_HC_MAP_GPA_RANGE & 1:
            self.hypercalls.append(Hypercall(step, -uapi.KVM_ENOSYS))
            return None
        if step.gpa % page or not step.npages or step.gpa // page + step.npages > 1 << 64:
            self.hypercalls.append(Hypercall(step, -uapi.KVM_EINVAL))
            return None
        attributes = uapi.KVM_MAP_GPA_RANGE_ENCRYPTED if step.private else uapi.KVM_MAP_GPA_RANGE_DECRYPTED
        return Stop(uapi.KVM_EXIT_HYPERCALL, {
            "nr": uapi.KVM_HC_MAP_GPA_RANGE, "args0": step.gpa, "args1": step.npages, "args2": attributes,
            "ret": 0, "flags": uapi.KVM_EXIT_HYPERCALL_LONG_MODE,
        })


def stop_of(stopped: Exit) -> Stop:
    """How an access ends KVM_RUN that the machine does not let through."""
    if stopped.reason == uapi.KVM_EXIT_MMIO:
        return Stop(stopped.reason, {"phys_addr": stopped.gpa, "len": min(stopped.size, 8),
                                     "is_write": int(stopped.is_write)})
    return Stop(stopped.reason, {"flags": stopped.flags, "gpa": stopped.gpa, "size": stopped.size},
                stopped.errno or EFAULT)
