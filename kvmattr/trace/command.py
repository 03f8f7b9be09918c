"""Replay recorded operations: what they cost by memslots, and what they would cost by attributes.

TRACE is a log of QEMU (-trace kvm_set_user_memory or kvm_convert_memory), of strace or of the kernel's event
kvm_vm_set_mem_attributes, or a trace in the native format; plain, gzip, xz or zstd; - is standard input.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from time import monotonic
from typing import Any

from kvmattr.hosts import X86_64
from kvmattr.measure import ending, writing
from kvmattr.measure.refusing import Refused, refusing
from kvmattr.profiles import PROFILES
from kvmattr.trace.files import ESTIMATED, ROUNDS, TIMED_AGAIN
from kvmattr.trace.generators import GENERATORS
from kvmattr.trace.hosts import NAMES
from kvmattr.trace.on_kvm import on_kvm, on_kvm_text
from kvmattr.trace.operations import Machine
from kvmattr.trace.reading import read
from kvmattr.trace.replaying import Summary, machine_for, replay, time_again
from kvmattr.trace.text import summary_text
from kvmattr.trace.trace import Trace
from kvmattr.trace.writing import write

HELP = "show what recorded operations cost by memslots and by attributes"

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kvmattr replay`."""
    parser.add_argument("traces", nargs="*", metavar="TRACE", help="a file, or - for standard input")
    parser.add_argument("--abi", choices=list(PROFILES), help="the ABI profile of traces without a vm line"
                        " (default: rfc for native traces, linux for logs)")
    add_reading_arguments(parser)
    parser.add_argument("--answers", action="store_true", help="print each operation's answer, INDEX ERRNO"
                        " or INDEX get ADDR:PAGES:S|P ...; the summary goes to standard error")
    parser.add_argument("--no-comparison", action="store_true", help="run the trace on the machine alone")
    parser.add_argument("--estimate", action=argparse.BooleanOptionalAction, help="estimate the kernel instructions of"
                        f" both sides (default: for traces of up to {ESTIMATED:,} operations)")
    parser.add_argument("--on-kvm", action="store_true", help="issue the calls to a VM of the running kernel, too: its"
                        " answers, and what each call took")
    parser.add_argument("--json", metavar="FILE", help="write the summaries as JSON, too; - is standard"
                        " output, the summary then goes to standard error")
    parser.add_argument("--write", metavar="FILE", help="write the trace in the native format, too; - is"
                        " standard output")
    made = parser.add_argument_group("made traces, in place of TRACE")
    kinds = sorted(GENERATORS)
    made.add_argument("--generate", choices=kinds, metavar="KIND", help=", ".join(kinds))
    made.add_argument("--operations", type=int, default=10_000, metavar="N", help="default: 10000")
    made.add_argument("--memory", type=_size, default=4 << 30, metavar="SIZE", help="default: 4G")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed makes the same trace")


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how a recording is to be understood; `replay` and `show` have them."""
    parser.add_argument("--phys-bits", type=int, metavar="N", help="guest-physical addresses end at 2^N")
    parser.add_argument("--host", choices=NAMES, help="the machine that a log was recorded on, whose user"
                        " space ends elsewhere (default: as the log shows)")
    parser.add_argument("--vm", type=int, metavar="N", help="of a log of several VMs the Nth, as the error that lists"
                        " them counts")
    parser.add_argument("--pid", type=int, action="append", metavar="P", help="of a log of several VMs the one of this"
                        " process or thread; may be given more than once")
    parser.add_argument("--one-vm", action="store_true", help="QEMU's and the kernel's events, which name no VM, are of"
                        " one, whatever speaks against it")
    parser.add_argument("--strict", action="store_true", help="a line that names one of our calls and is not read is an"
                        " error, an answer that differs from the recorded one exit code 1")
    parser.add_argument("--model-answers", action="store_true", help="the model's answers decide what happens, not the"
                        " recorded ones")
    parser.add_argument("--default-private", action=argparse.BooleanOptionalAction, help="whether the VMM sets each"
                        " new memslot with a guest_memfd PRIVATE without a line (default: as the QEMU of the log does)")


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those that `read` takes."""
    names = ("strict", "vm", "pid", "one_vm", "default_private")
    return {name: getattr(arguments, name) for name in names}


def run(arguments: argparse.Namespace) -> int:
    """Replay; 0, 1 if two sides ended unequal (or, strictly, answers did). Raises Refused."""
    if bool(arguments.traces) == bool(arguments.generate):
        raise Refused("expected one TRACE or more, or --generate KIND")
    if arguments.write and len(arguments.traces) > 1:
        raise Refused("expected one TRACE with --write")
    summaries: list[Summary] = []
    with refusing():
        writing.check(arguments.json, arguments.write, read=[name for name in arguments.traces if name != "-"])
        for name in arguments.traces or [None]:
            with _trace(name, arguments) as trace:
                summaries.append(_replay(trace, arguments))
        if arguments.json:
            machine = {"host": platform.node(), "machine": platform.machine(),
                       "kernel": platform.release(), "python": platform.python_version()}
            replays = [asdict(summary) for summary in summaries]
            result = {"schema": 1, "machine": machine, "replays": replays}
            writing.write(arguments.json, json.dumps(result, indent=1) + "\n")
    differs = arguments.strict and any(summary.different or (summary.on_kvm is not None and summary.on_kvm.different)
                                       for summary in summaries)
    return 1 if differs or any(summary.equal is False for summary in summaries) else 0


def _trace(name: str | None, arguments: argparse.Namespace) -> Trace:
    if name is None:
        return GENERATORS[arguments.generate](arguments.memory, arguments.operations, arguments.seed)
    return read(name, _Counter("lines read"), **reading_options(arguments))


def _replay(trace: Trace, arguments: argparse.Namespace) -> Summary:
    vm = machine_for(trace, arguments.abi, arguments.phys_bits, arguments.host)
    if arguments.write:
        options = {"private": int(vm.memslots.private_memory), "phys_bits": vm.memslots.phys_bits}
        write(arguments.write, trace, trace.machine or Machine(
            vm.profile.name, options, None if vm.host is X86_64 else vm.host.name))
    summary = replay(trace, vm, answers=sys.stdout if arguments.answers else None,
                     compare=not arguments.no_comparison, progress=_Counter("operations replayed"),
                     model_answers=arguments.model_answers,
                     estimate=trace.operations <= ESTIMATED if arguments.estimate is None else arguments.estimate)
    if trace.operations <= TIMED_AGAIN:
        spoken = (arguments.abi, arguments.phys_bits, arguments.host)
        time_again(summary, trace, lambda: machine_for(trace, *spoken), ROUNDS,
                   model_answers=arguments.model_answers)
    if arguments.host is not None:
        summary.machine_why = ""
    out = sys.stderr if arguments.answers else writing.people(arguments.json, arguments.write)
    print(summary_text(summary), file=out, end="", flush=True)
    if arguments.on_kvm:
        summary.on_kvm = on_kvm(trace, machine_for(trace, arguments.abi, arguments.phys_bits, arguments.host))
        print("\n".join(on_kvm_text(summary.on_kvm)), file=out, flush=True)
    return summary


class _Counter:
    """Shows on a terminal how far it is, from the second second on and ten times a second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = monotonic() + 1

    def __call__(self, count: int) -> Any:
        """Show the count; end where a signal asked for it that something cleared."""
        ending.again()
        now = monotonic()
        if now >= self._next and sys.stderr.isatty():
            self._next = now + 0.1
            print(f"\r{count:,} {self._what}\r", file=sys.stderr, end="", flush=True)


def _size(text: str) -> int:
    """
    >>> _size("2G"), _size("4096")
    (2147483648, 4096)
    """
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not number.isdecimal() or unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of bytes, or one with K, M, G or T")
    return int(number) * _UNITS[unit]
