from typing import final

from kvmattr._vm import Machine, Watcher
from kvmattr.faults import Exit

@final
class Tlb(Watcher):
    def __init__(
        self,
        machine: Machine,
        owner: object,
        engine: int,
        functions: tuple[int, ...],
        registers: tuple[int, int],
        flat: bool,
        private: bool | None,
        shared_bit: int,
        private_bit: int,
    ) -> None: ...
    def close(self) -> None: ...
    def start(self, memory_hooks: bool) -> None: ...
    def stop(self) -> None: ...
    def exit_of_fault(self) -> Exit | None: ...
    def paging(self) -> bool: ...
    def flush(self) -> None: ...
