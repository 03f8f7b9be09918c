"""What runs in a program whose /dev/kvm is a fake one: each function prints what it saw, as one line of JSON.

``python fake_clients.py NAME`` runs one; nothing of kvmattr is imported here but its numbers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import stat
import sys
import tempfile

from kvmattr import uapi

libc = ctypes.CDLL(None, use_errno=True)
PAGE = 4096
MMAP, INIT_SHARED = uapi.GUEST_MEMFD_FLAG_MMAP, uapi.GUEST_MEMFD_FLAG_INIT_SHARED


def call(function, *arguments):
    """What it returns, or the errno's name."""
    try:
        return function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno].replace("ENOTSUP", "EOPNOTSUPP")


def ioctl(file, request, argument=0):
    return call(fcntl.ioctl, file, request, bytearray(argument) if type(argument) is bytes else argument)


def raw(file, request, pointer):
    """With any pointer."""
    return 0 if libc.ioctl(file, ctypes.c_ulong(request), ctypes.c_void_p(pointer)) >= 0 else (
        errno.errorcode[ctypes.get_errno()])


def device():
    return os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)


def machine():
    """A VM with private memory; of a kernel that makes none, a default one."""
    kvm = device()
    made = ioctl(kvm, uapi.KVM_CREATE_VM, uapi.KVM_X86_SW_PROTECTED_VM)
    return ioctl(kvm, uapi.KVM_CREATE_VM, 0) if isinstance(made, str) else made


def attributes(vm, address, size, value, flags=0):
    structure = uapi.linux_kvm_memory_attributes(address, size, value, flags)
    return ioctl(vm, uapi.KVM_SET_MEMORY_ATTRIBUTES, bytes(structure))


def region(vm, slot, gpa, size, flags=0, guest_memfd=-1, offset=0):
    return ioctl(vm, uapi.KVM_SET_USER_MEMORY_REGION2, bytes(uapi.kvm_userspace_memory_region2(
        slot, flags, gpa, size, 0x7F0000000000, offset, guest_memfd & 0xFFFFFFFF)))


def guest_memfd(vm, size, flags=0):
    return ioctl(vm, uapi.KVM_CREATE_GUEST_MEMFD, bytearray(uapi.kvm_create_guest_memfd(size, flags)))


def convert(file, offset, size, value):
    structure = bytearray(uapi.kvm_memory_attributes2(offset=offset, size=size, attributes=value))
    result = ioctl(file, uapi.KVM_SET_MEMORY_ATTRIBUTES2, structure)
    return [result, uapi.kvm_memory_attributes2.from_buffer(structure).error_offset]


def system():
    """The device."""
    kvm = device()
    return {
        "version": ioctl(kvm, uapi.KVM_GET_API_VERSION),
        "version of 1": ioctl(kvm, uapi.KVM_GET_API_VERSION, 1),
        "mapping": ioctl(kvm, uapi.KVM_GET_VCPU_MMAP_SIZE),
        "types": [ioctl(kvm, uapi.KVM_CREATE_VM, kind) in ("EINVAL",) for kind in range(6)],
        "memory call": ioctl(kvm, uapi.KVM_SET_MEMORY_ATTRIBUTES, bytes(32)),
        "unknown": ioctl(kvm, 0xAE7E),
        "not KVM's": ioctl(kvm, 0x5401, bytes(64)),
        "read": call(os.read, kvm, 1), "written": call(os.write, kvm, b"x"),
        "mapped": call(mmap.mmap, kvm, PAGE),
        "allocated": allocate(kvm, 0, 0, PAGE),
    }


def allocate(file, mode, offset, size):
    done = libc.fallocate(file, mode, ctypes.c_int64(offset), ctypes.c_int64(size))
    return errno.errorcode[ctypes.get_errno()].replace("ENOTSUP", "EOPNOTSUPP") if done < 0 else 0


def capabilities():
    """What the device, a default VM and one with private memory say, by name."""
    kvm = device()
    files = {"-1": kvm, "0": ioctl(kvm, uapi.KVM_CREATE_VM, 0), "1": ioctl(kvm, uapi.KVM_CREATE_VM, 1)}
    names = ("MEMORY_ATTRIBUTES", "GUEST_MEMFD", "USER_MEMORY2", "MEMORY_FAULT_INFO", "NR_MEMSLOTS",
             "MULTI_ADDRESS_SPACE", "READONLY_MEM", "PRE_FAULT_MEMORY", "VM_TYPES", "SYNC_MMU")
    return {kind: {name: ioctl(file, uapi.KVM_CHECK_EXTENSION, getattr(uapi, f"KVM_CAP_{name}")) for name in names}
            for kind, file in files.items()}


def memory():
    """The memory calls of a VM, right and wrong."""
    vm, other = machine(), machine()
    file, foreign = guest_memfd(vm, 1 << 20), guest_memfd(other, 1 << 20)
    flag = uapi.KVM_MEM_GUEST_MEMFD
    return {
        "plain": region(vm, 0, 0, 1 << 20),
        "again": region(vm, 0, 0, 1 << 20),
        "overlap": region(vm, 1, 0, 1 << 20),
        "bound": region(vm, 2, 1 << 20, 1 << 20, flag, file),
        "bound twice": region(vm, 3, 1 << 21, 1 << 20, flag, file),
        "closed": region(vm, 3, 1 << 21, 1 << 20, flag, 777),
        "no file": region(vm, 3, 1 << 21, 1 << 20, flag, -1),
        "device": region(vm, 3, 1 << 21, 1 << 20, flag, device()),
        "another kind": region(vm, 3, 1 << 21, 1 << 20, flag, 1),
        "foreign": region(vm, 3, 1 << 21, 1 << 20, flag, foreign),
        "private": attributes(vm, 0x1000, 0x3000, 8),
        "flags": attributes(vm, 0x1000, 0x3000, 8, 1),
        "unaligned": attributes(vm, 0x1001, 0x3000, 8),
        "on the file": attributes(file, 0x1000, 0x1000, 8),
        "on a pipe": attributes(os.pipe()[0], 0x1000, 0x1000, 8),
        "on a socket": attributes(socket.socketpair()[0].detach(), 0x1000, 0x1000, 8),
        "file flags": guest_memfd(vm, 1 << 20, INIT_SHARED),
        "hole": allocate(file, 3, 0, PAGE),
        "half a hole": allocate(file, 3, 0, 1),
        "truncated": call(os.ftruncate, file, 0),
        "size": [os.fstat(file).st_size, os.fstat(file).st_blksize],
        "mapped": call(mmap.mmap, file, PAGE),
    }


def pointers():
    """Structures where there is no memory; and the program that passed them lives."""
    vm = machine()
    memory = mmap.mmap(-1, 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc.mprotect(ctypes.c_void_p(start + PAGE), PAGE, 0)
    wholly = bytes(uapi.linux_kvm_memory_attributes(0, PAGE, 8, 0))
    memory[PAGE - 32:PAGE] = wholly
    read_only = mmap.mmap(-1, PAGE)
    place = ctypes.addressof(ctypes.c_char.from_buffer(read_only))
    read_only[:64] = bytes(uapi.kvm_pre_fault_memory(0, PAGE, 0))
    libc.mprotect(ctypes.c_void_p(place), PAGE, 1)
    vcpu = ioctl(vm, uapi.KVM_CREATE_VCPU, 0)
    region(vm, 0, 0, 1 << 20)
    return {
        "null": raw(vm, uapi.KVM_SET_MEMORY_ATTRIBUTES, 0),
        "kernel": raw(vm, uapi.KVM_SET_MEMORY_ATTRIBUTES, 1 << 63),
        "over the end": raw(vm, uapi.KVM_SET_MEMORY_ATTRIBUTES, start + PAGE - 16),
        "at the end": raw(vm, uapi.KVM_SET_MEMORY_ATTRIBUTES, start + PAGE - 32),
        "unknown request": raw(vm, 0x4020AE7E, 0),
        "region": raw(vm, uapi.KVM_SET_USER_MEMORY_REGION2, 8),
        "answer nowhere": raw(vcpu, uapi.KVM_PRE_FAULT_MEMORY, place),
        "alive": attributes(vm, 0x5000, 0x1000, 8),
    }


def processes():
    """A child, which is another address space, and a VM of its own."""
    vm = machine()
    attributes(vm, 0, 0x1000, 8)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        own = machine()
        answers = [attributes(vm, 0, 0x1000, 0), raw(vm, uapi.KVM_SET_MEMORY_ATTRIBUTES, 0),
                   attributes(own, 0x2000, 0x1000, 8)]
        os.write(writing, json.dumps(answers).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return {"child": json.loads(os.read(reading, 4096)), "parent": attributes(vm, 0x1000, 0x1000, 8)}


def copies():
    """dup, dup2, fcntl and a passed descriptor are the same file; it lives until the last is closed."""
    vm = machine()
    other, third, fourth = os.dup(vm), os.dup2(vm, 200), fcntl.fcntl(vm, fcntl.F_DUPFD_CLOEXEC, 300)
    answers = [attributes(each, 0x1000 * index, 0x1000, 8) for index, each in enumerate((other, third, fourth))]
    os.close(vm)
    os.close(other)
    os.close(third)
    answers.append(attributes(fourth, 0x3000, 0x1000, 8))
    left, right = socket.socketpair()
    socket.send_fds(left, [b"x"], [fourth])
    os.close(fourth)
    _, files, _, _ = socket.recv_fds(right, 1, 1)
    answers.append(attributes(files[0], 0x4000, 0x1000, 8))
    return {"answers": answers, "closed": attributes(fourth, 0, 0x1000, 8)}


def files():
    """In-place conversion, also from the process that a file was passed to; and a mapping of the file."""
    vm = machine()
    file = guest_memfd(vm, 1 << 20, MMAP | INIT_SHARED)
    region(vm, 0, 0, 1 << 20, uapi.KVM_MEM_GUEST_MEMFD, file)
    answers = {"private": convert(file, 0x1000, 0x2000, 8), "on the VM": ioctl(
        vm, uapi.KVM_SET_MEMORY_ATTRIBUTES2, bytearray(128)), "beyond": convert(file, 1 << 20, PAGE, 8)}
    left, right = socket.socketpair()
    child = os.fork()
    if not child:
        _, passed, _, _ = socket.recv_fds(right, 1, 1)
        left.send(json.dumps([passed[0], convert(passed[0], 0x8000, 0x1000, 8)]).encode())
        os._exit(0)
    socket.send_fds(left, [b"x"], [file])
    os.waitpid(child, 0)
    answers["child"] = json.loads(right.recv(4096))[1]
    with mmap.mmap(file, 1 << 20) as mapped:
        mapped[:5] = b"hello"
        with mmap.mmap(file, PAGE) as again:
            answers["mapping"] = again[:5].decode()
            allocate(file, 3, 0, PAGE)
            answers["hole"] = list(again[:5])
    answers["private mapping"] = call(mmap.mmap, file, PAGE, mmap.MAP_PRIVATE)
    return answers


def opening():
    """The names of the device, and what is no name of it."""
    dev = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY)
    names = {"/dev/kvm": None, "//dev/./kvm": None, "kvm": dev}
    versions = [ioctl(os.open(name, os.O_RDWR, dir_fd=directory), uapi.KVM_GET_API_VERSION)
                for name, directory in names.items()]
    os.chdir("/dev")
    versions.append(ioctl(os.open("kvm", os.O_RDWR), uapi.KVM_GET_API_VERSION))
    others = [call(os.open, name, os.O_RDWR) for name in ("/dev/kvmm", "/dev/kvm/x", "/tmp/dev/kvm")]
    inherited = os.get_inheritable(libc.open(b"/dev/kvm", os.O_RDWR))
    kinds = []
    if os.access("/dev/kvm", os.R_OK | os.W_OK):    # the kernel's own, by ways that the words do not tell
        with tempfile.TemporaryDirectory() as place:
            os.symlink("/dev/kvm", f"{place}/link")
            kinds = [stat.S_ISFIFO(os.fstat(os.open(name, os.O_RDWR)).st_mode)
                     for name in (f"{place}/link", "/dev/../dev/kvm")]
    return {"kinds": kinds, "versions": versions, "others": others, "inherited": inherited,
            "closed on exec": not os.get_inheritable(device())}


def executed():
    """A descriptor that is kept over exec: another address space, the same file."""
    if len(sys.argv) > 2:
        return {"vm": attributes(int(sys.argv[2]), 0, 0x1000, 8),
                "version": ioctl(int(sys.argv[3]), uapi.KVM_GET_API_VERSION)}
    vm, kvm = machine(), device()
    for each in (vm, kvm):
        os.set_inheritable(each, True)
    os.execv(sys.executable, [sys.executable, __file__, "executed", str(vm), str(kvm)])


def vcpu_of(vm, number=0):
    """A vCPU's descriptor and its struct kvm_run."""
    vcpu = ioctl(vm, uapi.KVM_CREATE_VCPU, number)
    mapped = mmap.mmap(vcpu, ioctl(device(), uapi.KVM_GET_VCPU_MMAP_SIZE))
    return vcpu, uapi.kvm_run.from_buffer(mapped)


def run_of(vcpu, run):
    """One KVM_RUN: its result, the exit and what that fills."""
    result = ioctl(vcpu, uapi.KVM_RUN)
    exits = {6: ("phys_addr", "len", "is_write"), 3: ("nr", "ret", "flags"), 39: ("flags", "gpa", "size")}
    part = {6: run.exit.mmio, 3: run.exit.hypercall, 39: run.exit.memory_fault}.get(run.exit_reason)
    fields = [getattr(part, name) for name in exits.get(run.exit_reason, ())]
    return [result, run.exit_reason, *fields, *(list(part.args)[:3] if run.exit_reason == 3 else [])]


def playing():
    """A vCPU at its script: MMIO, a fault twice and then resolved, a hypercall, HLT, the end."""
    vm = machine()
    region(vm, 0, 0, 1 << 20)
    file = guest_memfd(vm, 1 << 20)
    region(vm, 1, 1 << 20, 1 << 20, uapi.KVM_MEM_GUEST_MEMFD, file)
    vcpu, run = vcpu_of(vm)
    hypercalls = uapi.kvm_enable_cap(cap=uapi.KVM_CAP_EXIT_HYPERCALL, args=(1 << 12,))
    enabled = ioctl(vm, uapi.KVM_ENABLE_CAP, bytes(hypercalls))
    seen = {"enabled": enabled, "argument": ioctl(vcpu, uapi.KVM_RUN, 1), "mmio": run_of(vcpu, run)}
    seen["private"] = [run_of(vcpu, run), run_of(vcpu, run)]
    attributes(vm, 1 << 20, 0x1000, 8)
    seen["hypercall"] = run_of(vcpu, run)
    run.exit.hypercall.ret = (1 << 64) - 22
    run.immediate_exit = 1
    seen["immediate"] = run_of(vcpu, run)
    run.immediate_exit = 0
    seen["halt"] = run_of(vcpu, run)
    seen["end"] = [run_of(vcpu, run), run_of(vcpu, run)]
    seen["other"] = [ioctl(vm, uapi.KVM_CREATE_VCPU, 0), ioctl(vm, uapi.KVM_CREATE_VCPU, 4096),
                     ioctl(vcpu, uapi.KVM_SET_MEMORY_ATTRIBUTES, bytes(32)), ioctl(vcpu, 0xAE7E)]
    second, its_run = vcpu_of(vm, 1)
    seen["second"] = run_of(second, its_run)
    return seen


def refusing():
    """Hypercalls that KVM refuses itself, and one that it may not hand on."""
    vm = machine()
    vcpu, run = vcpu_of(vm)
    first = run_of(vcpu, run)
    bad = [ioctl(vm, uapi.KVM_ENABLE_CAP, bytes(uapi.kvm_enable_cap(cap=cap, flags=flags, args=(bits,))))
           for cap, flags, bits in ((201, 1, 1 << 12), (201, 0, 1), (999, 0, 0))]
    ioctl(vm, uapi.KVM_ENABLE_CAP, bytes(uapi.kvm_enable_cap(cap=uapi.KVM_CAP_EXIT_HYPERCALL, args=(1 << 12,))))
    return {"first": first, "bad": bad, "then": run_of(vcpu, run)}


def faulting():
    """KVM_PRE_FAULT_MEMORY, and what a vCPU says of the page that stopped it."""
    vm = machine()
    region(vm, 0, 0, 0x4000)
    attributes(vm, 0x2000, 0x1000, 8)
    vcpu, run = vcpu_of(vm)
    answers = []
    for gpa, size in ((0, 0x4000), (0x2000, 0x1000), (0x8000, 0x1000), (1, 0x1000)):
        asked = bytearray(uapi.kvm_pre_fault_memory(gpa, size))
        result = ioctl(vcpu, uapi.KVM_PRE_FAULT_MEMORY, asked)
        left = uapi.kvm_pre_fault_memory.from_buffer(asked)
        answers.append([result, left.gpa, left.size, run.exit_reason])
    return answers


def beyond():
    """A memslot above 4 GiB, and one of the device's answers."""
    kvm = device()
    vm = ioctl(kvm, uapi.KVM_CREATE_VM, 0)
    return [region(vm, 0, 1 << 33, 1 << 20), region(vm, 1, 0, 1 << 20), attributes(vm, 0, PAGE, 1 << 5),
            ioctl(kvm, uapi.KVM_CHECK_EXTENSION, uapi.KVM_CAP_NR_MEMSLOTS)]


def kept():
    """What is set up before the first KVM_RUN comes back as it was set; lists in their own sizes."""
    kvm = device()
    vm = machine()
    vcpu, _ = vcpu_of(vm)
    seen = {}
    for name in ("REGS", "SREGS", "SREGS2", "FPU", "LAPIC", "MP_STATE", "VCPU_EVENTS", "DEBUGREGS", "XSAVE", "XCRS",
                 "CLOCK", "PIT2"):
        put, get = getattr(uapi, f"KVM_SET_{name}"), getattr(uapi, f"KVM_GET_{name}")
        of, size = vm if name in ("CLOCK", "PIT2") else vcpu, uapi.size_of(get)
        first, second = bytearray(b"?" * size), bytearray(size)
        ioctl(of, get, first)
        there = os.urandom(size)
        seen[name] = [first == bytes(size), ioctl(of, put, there), ioctl(of, get, second), second == there]
    entries = bytearray(8 + 40 * 64)
    seen["too short"] = ioctl(kvm, uapi.KVM_GET_SUPPORTED_CPUID, entries[:8])
    entries[0] = 64
    seen["cpuid"] = [ioctl(kvm, uapi.KVM_GET_SUPPORTED_CPUID, entries), entries[0]]
    given = bytes(entries[:8 + 40 * entries[0]])
    back = bytearray(b"\x40" + bytes(7 + 40 * 64))
    seen["kept cpuid"] = [ioctl(vcpu, uapi.KVM_SET_CPUID2, given), ioctl(vcpu, uapi.KVM_GET_CPUID2, back),
                          bytes(back[:len(given)]) == given]
    msrs = bytearray(8 + 2 * 16)
    msrs[0], msrs[8], msrs[16], msrs[24], msrs[32] = 2, 0x10, 77, 0x11, 88
    seen["set msrs"] = ioctl(vcpu, uapi.KVM_SET_MSRS, msrs)
    msrs[16] = msrs[32] = 0
    seen["msrs"] = [ioctl(vcpu, uapi.KVM_GET_MSRS, msrs), msrs[16], msrs[32]]
    # A list whose end cannot be read. Both pages are ours: what lies behind another mapping is somebody's memory.
    libc.mmap.restype = ctypes.c_void_p
    place = libc.mmap(None, 2 * PAGE, 3, 0x22, -1, 0) + PAGE - 8
    ctypes.memset(place, 2, 1)
    libc.mprotect(ctypes.c_void_p(place + 8), PAGE, 0)
    seen["list nowhere"] = raw(vcpu, uapi.KVM_SET_MSRS, place)
    seen["too many"] = [ioctl(vcpu, uapi.KVM_SET_MSRS, b"\xff\xff" + bytes(6)),
                        ioctl(vcpu, uapi.KVM_SET_CPUID2, b"\xff\xff" + bytes(6))]
    # A list that would pass the end of user space, which the kernel refuses before it looks at the answer.
    last = libc.mmap(ctypes.c_void_p((1 << 47) - 2 * PAGE), PAGE, 3, 0x100022, -1, 0)    # fixed, not over another
    if last == (1 << 47) - 2 * PAGE:
        ctypes.memset(last + PAGE - 8, 64, 1)
        answers = [raw(kvm, uapi.KVM_GET_SUPPORTED_CPUID, last + PAGE - 8), ioctl(kvm, uapi.KVM_GET_API_VERSION)]
    else:
        answers = ["EFAULT", 12]
    seen["list past the end"] = answers
    seen["tsc"] = [ioctl(vcpu, uapi.KVM_SET_TSC_KHZ, 1234), ioctl(vcpu, uapi.KVM_GET_TSC_KHZ)]
    chip = bytearray(b"\1" + bytes(519))
    seen["chip"] = [ioctl(vm, uapi.KVM_GET_IRQCHIP, chip), ioctl(vm, uapi.KVM_GET_IRQCHIP, b"\7" + bytes(519))]
    seen["accepted"] = [ioctl(vm, uapi.KVM_IOEVENTFD, bytes(64)), ioctl(vm, uapi.KVM_SET_TSS_ADDR, 1),
                        ioctl(vcpu, uapi.KVM_NMI)]
    seen["elsewhere"] = [ioctl(vm, uapi.KVM_SET_REGS, bytes(144)), ioctl(vcpu, uapi.KVM_IOEVENTFD, bytes(64)),
                         ioctl(kvm, uapi.KVM_SET_REGS, bytes(144))]
    return seen


def whole_files():
    """Where a file is private as a whole, every access to a mapping of it is SIGBUS."""
    vm = ioctl(device(), uapi.KVM_CREATE_VM, 0)
    ends = []
    for flags in (MMAP | INIT_SHARED, MMAP):
        child = os.fork()
        if not child:
            with mmap.mmap(guest_memfd(ioctl(device(), uapi.KVM_CREATE_VM, 0), PAGE, flags), PAGE) as mapped:
                mapped[0] = 1
            os._exit(0)
        ends.append(os.waitpid(child, 0)[1])
    return {"ends": ends, "vm": vm > 0}


def dying():
    """The server goes between two calls."""
    vm = machine()
    before = attributes(vm, 0, 0x1000, 8)
    print("ready", flush=True)
    sys.stdin.readline()
    return {"before": before, "after": [attributes(vm, 0, 0x1000, 8) for _ in range(3)],
            "open": call(device)}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
