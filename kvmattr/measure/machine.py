"""What the results depend on: the machine, the kernel, the versions, and who else was using the CPUs."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvmattr import uapi
from kvmattr._version import __version__
from kvmattr.bridges import kvm


def available_bytes() -> int:
    """Memory that can be taken without swapping: MemAvailable."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable line")


def cpu_model() -> str:
    """The first ``model name`` of /proc/cpuinfo, or the architecture where there is none (Arm)."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def physical_address_bits() -> int | None:
    """Bits of a physical address by /proc/cpuinfo, None where it does not say: KVM takes no memslot beyond them."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("address sizes"):
            return int(line.partition(":")[2].split()[0])
    return None


def cpu_mhz() -> float | None:
    """The clock rate of the CPU that may be used last, as the kernel tells it; None where it does not."""
    cpu = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    scaling = Path(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq")
    if scaling.exists():
        return int(scaling.read_text()) / 1000
    rates = [line.partition(":")[2] for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("cpu MHz")]
    return float(rates[cpu]) if cpu < len(rates) else None


def memslot_bytes(npages: int) -> int:
    """Kernel memory that KVM takes for a memslot of so many pages, at most.

    A u32 for each 2 MiB and each 1 GiB (``lpage_info``); with metadata of each page also 10 bytes a page, which fill
    memory long before the guest's addresses end.
    """
    return npages // 512 * 4 + npages // (1 << 18) * 4 + npages * 10 * slots_have_metadata_of_each_page()


def slots_have_metadata_of_each_page() -> bool:
    """Whether KVM keeps a reverse map and a write-tracking counter for each page of a memslot.

    It does where it does not page in two dimensions by its TDP MMU.
    """
    parameter = Path("/sys/module/kvm/parameters/tdp_mmu")
    return not (parameter.exists() and parameter.read_text().strip() == "Y")


def kvm_capabilities() -> dict[str, Any]:
    """What /dev/kvm says of itself, or why it does not: the device's answers, which hold for any type of VM."""
    reason = kvm.missing()
    if reason is not None:
        return {"missing": reason}
    fake = {"fake": "the model, by kvmattr fake"} if kvm.is_fake() else {}
    return fake | {
        "memslots": kvm.system_extension(uapi.KVM_CAP_NR_MEMSLOTS),
        "readonly_memslots": bool(kvm.system_extension(uapi.KVM_CAP_READONLY_MEM)),
        "memory_attributes": kvm.system_extension(uapi.KVM_CAP_MEMORY_ATTRIBUTES),
        "guest_memfd": bool(kvm.system_extension(uapi.KVM_CAP_GUEST_MEMFD)),
        "vm_types": kvm.system_extension(uapi.KVM_CAP_VM_TYPES),
        "vm_type_with_private_memory": kvm.private_vm_type(),
        "attributes_can_be_read_back": bool(kvm.system_extension(uapi.KVM_CAP_PRE_FAULT_MEMORY)),
    }


def describe() -> dict[str, Any]:
    """The ``machine`` object of a report."""
    return {
        "host": socket.gethostname(),
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "kvmattr": __version__,
        "kvm": kvm_capabilities(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def in_words(machine: dict[str, Any]) -> str:
    """The machine and the versions of a report in one line."""
    return (f"{machine['cpu']}, {machine['cpus']} CPUs; Linux {machine['kernel']}, Python {machine['python']}, "
            f"numpy {machine['numpy']}, kvmattr {machine['kvmattr']}; {machine['started']}")


@dataclass(frozen=True)
class Load:
    """CPU time so far: of all, stolen by the hypervisor, and our own (seconds)."""

    wall: float
    busy: float
    stolen: float
    own: float
    mhz: float | None = None

    @classmethod
    def now(cls) -> Load:
        """Read /proc/stat and our own times."""
        tick = os.sysconf("SC_CLK_TCK")
        fields = [int(field) / tick for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
        own = os.times()
        return cls(time.monotonic(), user + nice + system + irq + softirq, steal,
                   own.user + own.system + own.children_user + own.children_system, cpu_mhz())

    def since(self, earlier: Load) -> dict[str, float]:
        """CPUs that others kept busy and that the hypervisor took, on average since ``earlier``; the clock rate."""
        wall = max(self.wall - earlier.wall, 1e-9)
        others = (self.busy - earlier.busy) - (self.own - earlier.own)
        load = {"seconds": round(wall, 3), "other_cpus": round(max(others, 0) / wall, 3),
                "stolen_cpus": round(max(self.stolen - earlier.stolen, 0) / wall, 3)}
        if self.mhz is not None and earlier.mhz is not None:
            load["mhz"] = round((self.mhz + earlier.mhz) / 2, 1)
        return load
