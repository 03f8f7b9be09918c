"""A process that Qiling emulates, with pages that kvmattr protects: write-or-execute, enforced and lifted page by page.

Needs `pip install 'kvmattr[qiling]'`. The process writes code to its stack and calls it; its stack may not be executed.
"""

from __future__ import annotations

from qiling import Qiling
from qiling.const import QL_ARCH, QL_OS, QL_VERBOSE

from kvmattr import VM, Exit, uapi
from kvmattr.bridges.unicorn import Guest

#: mov dword [rsp-16], 0xc301c083 (add eax, 1; ret); lea rbx, [rsp-16]; mov eax, 41; call rbx; nop
CODE = bytes.fromhex("c74424f083c001c3 488d5c24f0 b829000000 ffd3 90")


def main() -> None:
    """Run it, lifting NO_EXEC from the page that it trips over."""
    ql = Qiling(code=CODE, archtype=QL_ARCH.X8664, ostype=QL_OS.LINUX, verbose=QL_VERBOSE.OFF)
    vm = VM(no_exec=True)
    stack = ql.arch.regs.arch_sp & -uapi.PAGE_SIZE
    vm.set_memory_attributes(stack, uapi.PAGE_SIZE, uapi.KVM_MEM_ATTR_NO_EXEC)
    exits: list[Exit] = []

    def lift(refused: Exit) -> bool:
        exits.append(refused)
        vm.set_memory_attributes(refused.gpa, refused.size, uapi.KVM_MEM_ATTR_NO_WRITE)
        return True

    # flat: Qiling maps memory as it likes, [vsyscall] at the top of the space too, where no memslot can be.
    with Guest(vm, ql.uc, flat=True, on_exit=lift):
        ql.run()
    print(f"{len(exits)} refusal, flags {exits[0].flags} (EXEC) at {exits[0].gpa - stack:+#x} of the stack's page")
    print("eax:", ql.arch.regs.eax)


if __name__ == "__main__":
    main()
