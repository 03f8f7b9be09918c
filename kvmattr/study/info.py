"""What this machine can do: its KVM, its kernel's limits, and which backends of the study can run on it."""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path

from kvmattr.hosts import HOSTS
from kvmattr.measure import extras, text
from kvmattr.measure.machine import available_bytes, describe
from kvmattr.profiles import PROFILES
from kvmattr.study import backends

HELP = "say what this machine can do"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``kvmattr info`` takes none."""


def run(arguments: argparse.Namespace) -> int:
    """Print it; 0."""
    machine = describe()
    print(f"kvmattr {machine['kvmattr']}, Python {machine['python']}, numpy {machine['numpy']}")
    print(f"{machine['cpu']}: {machine['cpus']} CPUs for us, "
          f"{text.quantity(machine['memory_bytes'], 'bytes')} of memory, "
          f"{text.quantity(available_bytes(), 'bytes')} free")
    print(f"kernel {machine['kernel']}, vm.max_map_count {_kernel_setting('vm/max_map_count')}")
    print("KVM:")
    for name, value in machine["kvm"].items():
        print(f"  {name.replace('_', ' ')}: {value}")
    print("libraries:")
    for library in extras.EXTRA_OF:
        print(f"  {library}: {extras.missing(library) or _version(library)}")
    print("backends of the study:")
    for name in backends.ALL:
        print(f"  {name}: {backends.missing(name) or 'yes'}")
    print("profiles of the model (--abi):")
    for profile in PROFILES.values():
        print(f"  {profile.name}: {profile.kernels}")
    print(f"hosts of the model: {', '.join(HOSTS)}")
    return 0


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "installed, of unknown version"


def _kernel_setting(name: str) -> str:
    path = Path("/proc/sys") / name
    return path.read_text().strip() if path.exists() else "unknown"
