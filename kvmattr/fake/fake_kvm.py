"""A fake /dev/kvm in a thread of this process: for tests, and for whoever drives programs from Python."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from kvmattr.fake.files import Kept
from kvmattr.fake.launch import check_program, environment, library
from kvmattr.fake.script import Guest, Script
from kvmattr.fake.server import Recorder, Server
from kvmattr.hosts import Host, host_named
from kvmattr.profiles import Profile, profile_named
from kvmattr.vm import VM


class FakeKVM:
    """A server of fake VMs, from construction until :meth:`close` or the end of ``with``.

    ``abi``: the profile of its VMs, a name or a :class:`kvmattr.profiles.Profile`. ``script``: what their guests do,
    a :class:`Script` or its text. ``phys_bits``, ``host``: as of :class:`kvmattr.VM`. Programs that :meth:`run` starts,
    or that get :attr:`environment`, find the VMs behind /dev/kvm; here they are :attr:`vms`, to be looked at
    at any moment. Each VM is of the type that the program asked for: private memory is KVM_X86_SW_PROTECTED_VM's.

    >>> import sys
    >>> program = "import os, fcntl; print(fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), 0xAE00, 0))"
    >>> with FakeKVM(abi="linux-7.2") as fake:
    ...     fake.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    '12\\n'
    """

    def __init__(self, abi: str | Profile = "linux-7.2", script: str | Script | None = None, *, phys_bits: int = 52,
                 host: str | Host = "x86-64", recorder: Recorder | None = None) -> None:
        library()
        parsed = script if isinstance(script, Script) else Script.parse(script or "")
        self._kept = Kept(profile_named(abi), parsed, host_named(host), phys_bits)
        self._server = Server(self._kept, recorder)
        self._thread = threading.Thread(target=self._server.serve, name="kvmattr-fake", daemon=True)
        self._thread.start()
        self._closed = False

    @property
    def vms(self) -> list[VM]:
        """The VMs that programs have made, in that order; they stay here when the program has ended."""
        return list(self._kept.vms)

    @property
    def guests(self) -> list[Guest]:
        """The guest of each VM: where its vCPUs are in the script, and what its hypercalls came to."""
        return list(self._kept.guests)

    @property
    def unknown(self) -> dict[tuple[str, int], int]:
        """What programs asked that the model does not have: (kind of descriptor, request) and how often."""
        return dict(self._kept.unknown)

    @property
    def without_effect(self) -> dict[tuple[str, int], int]:
        """What was accepted and has no effect on anything here, as ``unknown`` has it."""
        return dict(self._kept.without_effect)

    @property
    def calls(self) -> int:
        """Calls that were answered."""
        return self._server.calls

    @property
    def environment(self) -> dict[str, str]:
        """``os.environ`` with what lets a program find the VMs: for ``env=`` of subprocess."""
        return environment(self._server.path, "fake")

    def run(self, command: Sequence[str | os.PathLike[str]], *, env: Mapping[str, str] | None = None,
            **options: Any) -> subprocess.CompletedProcess[Any]:
        """``subprocess.run`` of a program whose /dev/kvm this is; all its options are there.

        Raises CannotCatch for a program whose calls cannot be caught (static, setuid, of another machine).
        """
        words = [os.fspath(word) for word in command]
        made = environment(self._server.path, "fake", env)
        check_program(words[0], made.get("PATH"))
        return subprocess.run(words, env=made, **options)

    def close(self) -> None:
        """End the server: programs that still use it get EIO. Calling it again does nothing."""
        if not self._closed:
            self._closed = True
            self._server.stop()
            self._thread.join()
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
