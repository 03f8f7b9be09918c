"""What this machine can do: its KVM, its kernel's limits, and which backends of the study can run on it."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

from kvmattr.hosts import HOSTS
from kvmattr.measure import extras, text
from kvmattr.measure.machine import available_bytes, describe
from kvmattr.measure.table import width
from kvmattr.profiles import PROFILES
from kvmattr.study import backends, registry
from kvmattr.study.table import wrapped

HELP = "say what this machine can do"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``kvmattr info`` takes none."""


def run(arguments: argparse.Namespace) -> int:
    """Print it; 0."""
    columns = width()
    for line in _lines():
        indent = " " * (len(line) - len(line.lstrip()))
        print(*wrapped(line.lstrip(), columns, indent, "  "), sep="\n")
    return 0


def _lines() -> Iterator[str]:
    machine = describe()
    for trouble in registry.load():
        print(f"kvmattr info: {trouble}", file=sys.stderr)
    yield f"kvmattr {machine['kvmattr']}, Python {machine['python']}, numpy {machine['numpy']}"
    memory, free = (text.quantity(count, "bytes") for count in (machine["memory_bytes"], available_bytes()))
    yield f"{machine['cpu']}: {machine['cpus']} CPUs for us, {memory} of memory, {free} free"
    regions = Path("/proc/sys/vm/max_map_count")
    most = regions.read_text().strip() if regions.exists() else "unknown"
    yield f"kernel {machine['kernel']}, vm.max_map_count {most}"
    for title, values in (
            ("KVM", {name.replace("_", " "): value for name, value in machine["kvm"].items()}),
            ("libraries", {library: extras.missing(library) or _version(library) for library in extras.EXTRA_OF}),
            ("backends of the study", {name: backends.missing(name) or "yes" for name in backends.ALL}),
            ("profiles of the model (--abi)", {profile.name: profile.kernels for profile in PROFILES.values()})):
        yield f"{title}:"
        for name, value in values.items():
            yield f"  {name}: {value}"
    yield f"hosts of the model: {', '.join(HOSTS)}"


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "installed, of unknown version"
