"""The command line: ``kvmattr COMMAND``, one module a command, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

#: Command name -> the module that owns it. Each module has ``HELP`` (one line), ``add_arguments(parser)``
#: and ``run(arguments) -> int`` (the exit code).
COMMANDS = {
    "scaling": "kvmattr.study.command",
    "compare": "kvmattr.study.compare",
    "gate": "kvmattr.gate.command",
    "info": "kvmattr.study.info",
    "replay": "kvmattr.trace.command",
    "show": "kvmattr.show",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (2 for bad usage, 130 after Ctrl-C)."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="kvmattr", description="Per-page memory attributes for KVM guests.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Only the module of the command that was asked for is imported in full: `kvmattr info` must not pay
    # for matplotlib. Help on all of them imports all of them.
    asked = words[0] if words and words[0] in COMMANDS else None
    for name, module_name in COMMANDS.items():
        if asked is not None and name != asked:
            commands.add_parser(name)
            continue
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args(words)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("kvmattr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


if __name__ == "__main__":
    sys.exit(main())
