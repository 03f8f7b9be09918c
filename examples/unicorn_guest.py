"""A guest that runs into a page it may not execute, and goes on once its handler has looked at the page.

W^X, enforced from outside: pages that the guest writes lose EXEC, pages that it executes lose WRITE. The guest
copies a routine to a data page and calls it; that trips NO_EXEC, the handler converts the page, and the guest
goes on. When it patches the routine, the page is converted back. Nothing of Unicorn's memory map changes.

    pip install 'kvmattr[unicorn]'
    python examples/unicorn_guest.py
"""

from unicorn import UC_ARCH_X86, UC_MODE_64, UC_PROT_ALL, Uc
from unicorn.x86_const import UC_X86_REG_RAX, UC_X86_REG_RSP

from kvmattr import VM, Access, Exit, uapi
from kvmattr.bridges.unicorn import Guest

CODE, HEAP, STACK, SIZE = 0x10000, 0x20000, 0x40000, 1 << 20
PAGE = uapi.PAGE_SIZE
NO_WRITE, NO_EXEC = uapi.KVM_MEM_ATTR_NO_WRITE, uapi.KVM_MEM_ATTR_NO_EXEC

PROGRAM = bytes.fromhex(
    "bb00000200"  # mov  ebx, HEAP
    "c70331c0ffc0"  # mov  dword [rbx], the bytes of: xor eax, eax; inc eax
    "c64304c3"  # mov  byte [rbx+4], ret
    "ffd3"  # call rbx                          (trips NO_EXEC)
    "c6430290"  # mov  byte [rbx+2], nop        (trips NO_WRITE)
    "c6430390"  # mov  byte [rbx+3], nop
    "ffd3"  # call rbx                          (trips NO_EXEC again)
)


def main() -> None:
    vm = VM(no_exec=True)
    vm.set_user_memory_region(slot=0, guest_phys_addr=0, memory_size=SIZE)
    vm.set_memory_attributes(0, SIZE, NO_EXEC)
    vm.set_memory_attributes(CODE, PAGE, NO_WRITE)

    engine = Uc(UC_ARCH_X86, UC_MODE_64)
    engine.mem_map(0, SIZE, UC_PROT_ALL)
    engine.mem_write(CODE, PROGRAM)
    engine.reg_write(UC_X86_REG_RSP, STACK)

    with Guest(vm, engine) as guest:

        def convert(refused: Exit) -> bool:
            wanted = Access(refused.flags)
            print(f"pc {guest.pc:#x}: {wanted.name} of page {refused.gpa:#x} refused; "
                  f"eax is {engine.reg_read(UC_X86_REG_RAX)}")
            vm.set_memory_attributes(refused.gpa, PAGE, NO_WRITE if wanted == Access.EXEC else NO_EXEC)
            return refused.reason == uapi.KVM_EXIT_MEMORY_FAULT

        end = guest.run(CODE, CODE + len(PROGRAM), handler=convert)
        assert end is None, end
        print(f"the guest went on to its end; eax is {engine.reg_read(UC_X86_REG_RAX)}")
        for address, size, protection in guest.protections(0, SIZE).tolist():
            print(f"  {address:#8x}..{address + size:#8x} {Access(protection)!r}")
        print(f"Unicorn's regions: {len(list(engine.mem_regions()))}")


if __name__ == "__main__":
    main()
