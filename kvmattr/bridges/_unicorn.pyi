from typing import final

from kvmattr._vm import Machine, Watcher
from kvmattr.faults import Exit

@final
class Tlb(Watcher):
    """The software TLB of one engine, filled from one machine and emptied when that changes.

    The engine calls it for as long as it lives, so its owner must keep a reference.
    """
    def __init__(
        self,
        machine: Machine,
        owner: object,
        engine: int,
        functions: tuple[int, ...],
        registers: tuple[int, int],
        linear: bool,
        slotless: bool,
        private: bool | None,
        shared_bit: int,
        private_bit: int,
    ) -> None: ...
    def close(self) -> None:
        """Take the hooks out of the engine and empty its TLB; the machine forgets it. Not while it runs."""
    def start(self, memory_hooks: bool, counted: bool) -> None:
        """The guest is about to run in this thread.

        ``memory_hooks``: hooks on its accesses may change the machine; ``counted``: instructions are counted.
        """
    def stop(self) -> None:
        """The guest has stopped."""
    def refused(self) -> tuple[int, int] | None:
        """The access that was not let through: the address of its page as the guest spells it, and what it was
        (an Access); or None.
        """
    def exit_of(self, address: int, size: int) -> Exit:
        """The Exit of the access that was not let through, of which these bytes are known."""
    def instructions(self) -> int:
        """Instructions begun since ``start``, where they are counted."""
    def paging(self) -> bool:
        """Whether the guest has its own paging on: then every miss is refused."""
    def flush(self) -> None:
        """Empty the TLB; not from within a memory hook."""
