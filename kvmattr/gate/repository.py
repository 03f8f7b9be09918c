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
    found = git(directory, "rev-parse", "--show-prefix", asked=f"--base {ref}: ")
    if found.returncode:
        raise Usage(f"--base {ref!r}: {directory} is not a git checkout: {said(found)}")
    prefix = found.stdout.decode().strip()
    found = git(directory, "rev-parse", "--verify", "--quiet", "--end-of-options", ref + "^{commit}")
    if found.returncode:
        raise Usage(f"--base {ref!r}: no such commit in {directory} (a shallow clone has few of them)")
    commit = found.stdout.decode().strip()

    def extract(scratch: Path) -> None:
        # From the root, whichever directory we are asked from.
        top = Path(git(directory, "rev-parse", "--show-toplevel").stdout.decode().strip())
        archive = git(top, "archive", "--format=tar", commit)
        if archive.returncode:
            raise CannotTell(f"--base {ref!r}: git archive failed: {said(archive)}")
        try:
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
                tar.extractall(scratch, filter="data")
        except tarfile.ReadError:
            raise CannotTell(f"--base {ref!r}: {commit} has no files") from None
    place = cache.kept(f"{commit}-sources", extract)
    return Checkout(place, place / prefix, commit)


def head(directory: Path) -> str | None:
    """The commit that is checked out there, ``+`` behind it if files were changed since; None without one."""
    try:
        found = git(directory, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        changed = git(directory, "status", "--porcelain", "--untracked-files=no").stdout.strip()
    except CannotTell:
        return None
    return None if found.returncode else found.stdout.decode().strip() + ("+" if changed else "")


def git(directory: Path, *words: str, asked: str = "") -> subprocess.CompletedProcess[bytes]:
    """What git says of a directory. CannotTell, which begins with what was ``asked``, where there is no git."""
    try:
        return subprocess.run(["git", "-C", str(directory), *words], capture_output=True)
    except FileNotFoundError:
        raise CannotTell(f"{asked}this machine has no git") from None


def said(done: subprocess.CompletedProcess[bytes]) -> str:
    """All that git said: what it advises stands below its first line."""
    return done.stderr.decode(errors="replace").strip() or f"git ended with {done.returncode}"
