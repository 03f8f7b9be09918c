"""Run a program whose /dev/kvm is the model: no kernel, no hardware, no rights are needed.

`kvmattr fake --abi linux-7.2 -- ./vmm` answers the program's calls on KVM as that kernel would, memory call by memory
call. The guest is a script (`--script FILE`, docs/fake.md): KVM_RUN plays its lines. What the program asked and the
model does not have is listed at the end; those calls got ENOTTY. The program's exit code is this one's.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from kvmattr.fake.files import Kept
from kvmattr.fake.launch import CannotCatch, check_program, environment, library
from kvmattr.fake.recording import Recording, name_of
from kvmattr.fake.running import EXIT_NO_COMMAND, command_of, run_and_serve
from kvmattr.fake.script import Script, ScriptError
from kvmattr.fake.server import Server, tell
from kvmattr.hosts import HOSTS, host_named
from kvmattr.measure.refusing import Refused
from kvmattr.profiles import PROFILES, profile_named

HELP = "run a program whose /dev/kvm is the model"

#: Requests that the model does not have are listed up to so many.
_LISTED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `kvmattr fake`."""
    parser.add_argument("--abi", default="linux-7.2", choices=PROFILES,
                        help="which kernel answers (default: %(default)s)")
    parser.add_argument("--script", type=Path, metavar="FILE", help="what the guest does: docs/fake.md")
    parser.add_argument("--record", metavar="FILE", help="write the calls and answers as a log for kvmattr replay")
    parser.add_argument("--phys-bits", type=int, default=52, choices=range(32, 53), metavar="N",
                        help="memslots end at or below 2^N (default: %(default)s)")
    parser.add_argument("--host", default="x86-64", choices=HOSTS, help="the machine below (default: %(default)s)")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND ...", help="what to run")


def run(arguments: argparse.Namespace) -> int:
    """Run it; the command's exit code, 128 and the signal's number if one ended it, 127 if there is no such command.
    Raises Refused, and CannotWrite for the recording."""
    words = command_of(arguments.words)
    if not words:
        raise Refused("expected -- COMMAND ...")
    try:
        script = Script() if arguments.script is None else Script.read(arguments.script)
        library()
        check_program(words[0])
    except FileNotFoundError as missing:
        if missing.filename == words[0]:
            print(f"kvmattr fake: {words[0]}: command not found", file=sys.stderr)
            return EXIT_NO_COMMAND
        raise Refused(f"{missing.filename}: {missing.strerror}") from missing
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}") from error
    except (ScriptError, CannotCatch) as wrong:
        raise Refused(str(wrong)) from wrong
    kept = Kept(profile_named(arguments.abi), script, host_named(arguments.host), arguments.phys_bits)
    with ExitStack() as stack:
        recording = None if arguments.record is None else stack.enter_context(Recording(arguments.record))
        server = Server(kept, recording)
        stack.callback(server.close)
        try:
            code = run_and_serve(server, words, environment(server.path, "fake"),
                                 idle=None if recording is None else recording.flush)
        except OSError as error:
            raise Refused(f"{words[0]}: {error.strerror}") from error
    _tell_the_end(server, words[0])
    return code if recording is None else recording.exit_code(code)


def _tell_the_end(server: Server, name: str) -> None:
    """What a run came to, and what it asked in vain."""
    kept = server.kept
    if not server.clients:
        tell(f"fake: {name} never opened /dev/kvm through the C library: nothing was answered")
        return
    vms = len(kept.vms)
    tell(f"fake: {server.calls:,} call{'s' * (server.calls != 1)} answered as {kept.profile.name}, "
         f"{vms} VM{'s' * (vms != 1)}")
    if kept.without_effect:
        requests = dict.fromkeys(name_of(request) for _, request in kept.without_effect)
        tell(f"fake: accepted without effect: {', '.join(requests)}")
    unknown = kept.unknown.most_common()
    for (kind, request), count in unknown[:_LISTED]:
        tell(f"fake: not in the model, ENOTTY: {name_of(request)} on {kind}, {count:,} time{'s' * (count != 1)}")
    if len(unknown) > _LISTED:
        tell(f"fake: and {len(unknown) - _LISTED} more requests")
