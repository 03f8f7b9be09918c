"""What the readers of logs give: one recorded call, what kind of evidence it is, and who made it."""

from __future__ import annotations

from typing import Final, NamedTuple

from kvmattr.trace.native import Mismatch, clip, number
from kvmattr.trace.operations import UNKNOWN, Record

#: The call itself, as strace, the kernel or QEMU's slot event has it.
DONE: Final = "done"
#: QEMU's kvm_convert_memory: what the guest asked for, written before QEMU looks whether it can be done.
ASKED: Final = "asked"


class Call(NamedTuple):
    """One recorded call and how it went: an errno, 0, or UNKNOWN.

    `kind` is DONE or ASKED. `default_private`: QEMU sets a new memslot with a guest_memfd PRIVATE right
    after this call. `notes`: what else stands in the line and was not understood. `pid`: the process or
    thread of the line, if it names one.
    """

    record: Record
    answer: int = UNKNOWN
    kind: str = DONE
    default_private: bool = False
    notes: tuple[str, ...] = ()
    pid: int | None = None


class Incomplete(Mismatch):
    """A call that ends with the line before it is whole, so that the next line may go on with it.

    `call`: what the line means if the next one does not. `begin`: where in the line the call's text begins, with what
    stands between it and the one before.
    """

    def __init__(self, text: str, call: Call | None = None) -> None:
        super().__init__(text)
        self.call = call
        self.begin = 0


def descriptor(text: str) -> int:
    """A file descriptor. Some print -1 as the u32 or u64 that it is; strace -y adds a path.

    >>> descriptor("-1"), descriptor("4294967295"), descriptor("12</m>")
    (-1, -1, 12)
    """
    text = text.partition("<")[0]
    if text == "-1":
        return -1
    value = number(text, "guest_memfd")
    if value >= 2**32:
        value -= 2**64
        if value < -2**31:
            raise Mismatch(f"expected a file descriptor for guest_memfd, found {clip(text)}")
        return value
    return value - 2**32 if value >= 2**31 else value


def errno_of(text: str, name: str = "ret") -> int:
    """The errno of a result that is 0 or a negative errno; simpletrace prints the latter as a u64.

    >>> errno_of("-17"), errno_of("0xffffffffffffffef"), errno_of("0")
    (17, 17, 0)
    """
    negative = text.startswith("-")
    digits = text[1:] if negative else text
    if not digits[:1].isdecimal():
        raise Mismatch(f"expected a decimal number for {name}, found {clip(text)}")
    value = number(digits, name)
    if negative:
        value = -value
    elif value >= 2**63:
        value -= 2**64
    elif 2**31 <= value < 2**32:
        value -= 2**32
    if not -4095 <= value <= 0:
        raise Mismatch(f"expected 0 or a negative errno, down to -4095, for {name}, found {clip(text)}")
    return -value
