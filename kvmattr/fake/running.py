"""A program and the server for it, from the program's start until nobody uses the server any more."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence

from kvmattr.fake.server import Server
from kvmattr.measure.forwarding import forwarding

EXIT_NO_COMMAND = 127


def command_of(words: Sequence[str]) -> list[str]:
    """The command behind the options, with or without ``--`` before it."""
    return list(words[1:] if words[:1] == ["--"] else words)


def run_and_serve(server: Server, words: Sequence[str], environment: Mapping[str, str],
                  idle: Callable[[], None] | None = None) -> int:
    """Run a command and serve it; its exit code, 128 and the signal's number if one ended it.

    Signals that are sent to us reach the command. What it leaves behind (a daemon) is served until it ends too.
    Raises OSError if the command cannot be started.
    """
    with forwarding() as started:
        process = subprocess.Popen(words, env=dict(environment))
        started.append(process)
        # Each descriptor of the program is one here as well; the program itself has the limit that it was given.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

        def wait() -> None:
            process.wait()
            server.wake()

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        server.idle = idle
        try:
            server.serve(lambda: not waiting.is_alive() and not server.in_use)
        except BaseException:
            process.kill()      # Ctrl-C reached it as well; whatever else this is, nothing would answer it
            raise
        finally:
            waiting.join()
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
