"""Sources of a git ref, taken out of the repository into the cache of builds."""

from __future__ import annotations

import io
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from kvmattr.gate import cache
from kvmattr.gate.verdict import CannotTell, Usage


@dataclass(frozen=True)
class Checkout:
    """Where the sources of a ref lie, and which directory of them is the one that was asked about."""

    root: Path
    inside: Path
    commit: str


def checkout(directory: Path, ref: str) -> Checkout:
    """The sources of a git ref of the repository that holds ``directory``.

    Usage for a directory outside a repository, with git's own words (its remedy for another owner's repository is
    among them), and for a ref that is none; CannotTell without git or where git fails.
    """
    try:
        prefix = line(directory, "rev-parse", "--show-prefix", asked=f"--base {ref}: ")
    except Refused as error:
        raise Usage(f"--base {ref!r}: {directory} is not a git checkout: {error.said}") from None
    try:
        commit = line(directory, "rev-parse", "--verify", "--quiet", "--end-of-options", ref + "^{commit}")
    except Refused:
        raise Usage(f"--base {ref!r}: no such commit in {directory} (a shallow clone has few of them)") from None

    def extract(scratch: Path) -> None:
        # From the root, whichever directory we are asked from.
        top = Path(line(directory, "rev-parse", "--show-toplevel"))
        archive = git(top, "archive", "--format=tar", commit, asked=f"--base {ref!r}: ")
        try:
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(scratch, filter="data")
        except tarfile.ReadError:
            raise CannotTell(f"--base {ref!r}: {commit} has no files") from None
    place = cache.kept(f"{commit}-sources", extract)
    return Checkout(place, place / prefix, commit)


def head(directory: Path) -> str | None:
    """The commit that is checked out there, ``+`` behind it if files were changed since; None without one."""
    try:
        changed = git(directory, "status", "--porcelain", "--untracked-files=no")
        return line(directory, "rev-parse", "--verify", "HEAD^{commit}") + "+" * bool(changed)
    except CannotTell:
        return None


class Refused(CannotTell):
    """Git could not do what it was asked; ``said`` is all that it said: its advice stands below its first line."""

    def __init__(self, asked: str, said: str) -> None:
        super().__init__(f"{asked} failed: {said}")
        self.said = said


def git(directory: Path, *words: str, asked: str = "") -> bytes:
    """What git answers of a directory. :class:`Refused` where it does not, CannotTell where there is no git: both
    begin with what was ``asked``."""
    try:
        done = subprocess.run(["git", "-C", str(directory), *words], capture_output=True)
    except FileNotFoundError:
        raise CannotTell(f"{asked}this machine has no git") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise Refused(f"{asked}git {words[0]}", said or f"it ended with {done.returncode}")
    return done.stdout


def line(directory: Path, *words: str, asked: str = "") -> str:
    """The same as one line; bytes that are no UTF-8 are names of files."""
    return git(directory, *words, asked=asked).decode(errors="surrogateescape").rstrip("\n")
