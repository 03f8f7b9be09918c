"""The command line: ``kvmattr COMMAND``, one module a command, imported only when it is asked for."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from kvmattr import embedding
from kvmattr._version import __version__
from kvmattr.measure import ending, writing
from kvmattr.measure.refusing import Refused
from kvmattr.measure.status import forgiving_stderr

#: What was asked for makes no sense, or could not be read or written.
EXIT_REFUSED = 2

#: Command name -> the module that owns it. Each module has ``HELP`` (one line), ``add_arguments(parser)``
#: and ``run(arguments) -> int`` (the exit code; it may raise Refused).
COMMANDS = {
    "scaling": "kvmattr.study.command",
    "compare": "kvmattr.study.compare",
    "report": "kvmattr.study.report_command",
    "gate": "kvmattr.gate.command",
    "info": "kvmattr.study.info",
    "record": "kvmattr.trace.record_command",
    "fake": "kvmattr.fake.command",
    "shadow": "kvmattr.fake.shadow_command",
    "replay": "kvmattr.trace.command",
    "show": "kvmattr.show",
}

#: Options that print one line and end the command: option -> what is printed, and why one asks.
PRINTED: dict[str, tuple[Callable[[], str], str]] = {
    "--version": (lambda: f"kvmattr {__version__}", "show program's version number and exit"),
    "--includes": (embedding.includes, "print the compiler's -I options for C and C++ code, and exit"),
    "--cmakedir": (embedding.cmake_directory, "print the directory for CMake's kvmattr_DIR, and exit"),
    "--pkgconfigdir": (embedding.pkgconfig_directory, "print the directory for PKG_CONFIG_PATH, and exit"),
}


class _Printed(argparse.Action):
    """An option that prints one line, as it is, and ends the command."""

    def __call__(self, parser: argparse.ArgumentParser, *_rest: Any) -> None:
        """Print what the option stands for."""
        print(self.const())
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """A parser whose help tells where it could not be written: argparse passes that over and ends with 0."""

    def print_help(self, file: Any = None) -> None:
        """Write the help, to standard output if nothing else is said."""
        print(self.format_help(), end="", file=file)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the command; what was printed is written first."""
        if sys.stdout is not None:
            sys.stdout.flush()
        super().exit(status, message)


class _Paragraphs(argparse.RawDescriptionHelpFormatter):
    """Paragraphs of a description fit the width; those with indented lines stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(block if "\n " in f"\n{block}" else textwrap.fill(block, width, break_on_hyphens=False)
                           for block in text.strip("\n").split("\n\n"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    2 for bad usage and for output that could not be written; 130 after Ctrl-C, 143 after SIGTERM, 129 after
    SIGHUP, 141 when nobody reads the output any more.
    """
    try:
        with forgiving_stderr(), writing.named_stdout():
            return _run(list(sys.argv[1:] if argv is None else argv))
    finally:
        ending.abandon_output()


def _run(words: Sequence[str]) -> int:
    """Run the command; however it ends, an exit code."""
    try:
        with ending.signals_interrupt():
            arguments = _parsed(words)
            code = int(arguments.run(arguments))
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except KeyboardInterrupt as interrupt:
        with contextlib.suppress(BrokenPipeError):
            print(f"kvmattr: {ending.reason(interrupt)}", file=sys.stderr)
        return ending.exit_code(interrupt)
    except BrokenPipeError:
        return ending.exit_code(ending.ReaderGone())
    except (Refused, writing.CannotWrite) as error:
        print(f"kvmattr {words[0]}: {error}", file=sys.stderr)
        return EXIT_REFUSED


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="kvmattr", description="Per-page memory attributes for KVM guests.")
    for option, (text, help_text) in PRINTED.items():
        parser.add_argument(option, action=_Printed, nargs=0, const=text, help=help_text)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Only the module of the command that was asked for is imported in full: `kvmattr info` must not pay
    # for matplotlib. Help on all of them imports all of them.
    asked = words[0] if words and words[0] in COMMANDS and "_ARGCOMPLETE" not in os.environ else None
    for name, module_name in COMMANDS.items():
        if asked is not None and name != asked:
            commands.add_parser(name)
            continue
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__,
                                      formatter_class=_Paragraphs)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    if "_ARGCOMPLETE" in os.environ:    # a shell asks what could come next: docs/study.md
        import argcomplete
        argcomplete.autocomplete(parser)
    if not words:
        parser.error(f"expected a COMMAND: {', '.join(COMMANDS)}")
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        parser.error(f"there is no command {words[0]!r}{_meant(words[0], COMMANDS)}: the commands are "
                     f"{', '.join(COMMANDS)}")
    arguments, unknown = parser.parse_known_args(words)
    if unknown:     # told by the command that was asked for, not by argparse's parser of all
        command = commands.choices[arguments.command]
        options = [word for word in re.findall(r"(?<![\w-])--?[\w-]+", command.format_usage()) if word != "--"]
        command.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(unknown[0].partition('=')[0], options)}")
    return arguments


def _meant(word: str, known: Iterable[str]) -> str:
    """What a mistyped word may have been, in brackets; nothing where none is like it."""
    import difflib

    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


if __name__ == "__main__":
    sys.exit(main())
