"""``--base REF`` for a project that embeds kvmattr: its own code at two commits, with the kvmattr that is installed.

The head is the working tree, with what is not committed; the base is the ref. Both are installed into directories of
their own, in the same way, or used as they lie where there is nothing to install. The scenarios are the head's on
both sides: they are the measure.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from kvmattr.gate import builds, cache, repository, running
from kvmattr.gate.process import Side
from kvmattr.gate.verdict import Usage

#: How a project that has a build file is installed; {python}, {source} and {target} are filled in.
INSTALL = "{python} -m pip install --quiet --disable-pip-version-check --no-deps --target {target} {source}"
_HINT = ("\n(Does its build need kvmattr or another package of this environment? --install \"{python} -m pip install "
         "--no-deps --no-build-isolation --target {target} {source}\" builds with what is here.)")

_BUILD_FILES = ("pyproject.toml", "setup.py", "setup.cfg")


@dataclass(frozen=True)
class Project:
    """Whose time is judged: the directory, where in it the scenario files lie, and how it is installed ("" for not
    at all)."""

    directory: Path
    scenarios: tuple[Path, ...]
    install: str
    kvmattr: Path

    @classmethod
    def at(cls, directory: Path, scenarios: list[str], install: str | None, kvmattr: Path) -> Project:
        """The project in a directory; ``install`` None: by pip if it has a build file, else not."""
        there = directory.resolve()
        if install is None:
            install = INSTALL if any((there / name).is_file() for name in _BUILD_FILES) else ""
        files = tuple(Path(each).resolve() for each in scenarios if each.endswith(".py"))
        return cls(there, files, install, kvmattr)

    def base(self, ref: str, *, twin: bool = False, shifted: bool = False) -> Side:
        """The project at a git ref; a twin is the same once more, a shifted one has its compiled functions at other
        addresses."""
        found = repository.checkout(self.directory, ref)
        return self._side(found.root, found.inside, found.commit, "twin" * twin + "shifted" * shifted)

    def head(self) -> Side:
        """The project as it lies there, without what git ignores."""
        top = Path(repository.line(self.directory, "rev-parse", "--show-toplevel"))
        inside = repository.line(self.directory, "rev-parse", "--show-prefix")
        listed = repository.line(top, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        names = sorted({name for name in listed.split("\0") if name and (top / name).is_file()})
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}\0{(top / name).stat().st_mode & 0o111}\0".encode() + (top / name).read_bytes())

        def copy(scratch: Path) -> None:
            for name in names:
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(top / name, scratch / name)
        place = cache.kept(f"{digest.hexdigest()[:40]}-sources", copy)
        return self._side(place, place / inside, digest.hexdigest(), "")

    def _side(self, root: Path, inside: Path, commit: str, kind: str) -> Side:
        """Sources as something to import from, cached."""
        python = (platform.python_version(), sysconfig.get_config_var("SOABI"), sys.prefix)
        key = hashlib.sha256(repr((commit, str(inside.relative_to(root)), self.install, kind, python)).encode())
        # All names are of one length: a path is in a process's memory and moves what comes after it.
        place = cache.kept(f"{key.hexdigest()[:40]}-project",
                           lambda scratch: self._fill(root, inside, kind, scratch))
        within = inside.relative_to(root)
        working = [self.directory, *self.directory.parents][len(within.parts)], root
        if self.install:
            return Side(self.kvmattr, (place,), working=working)
        # Where the scenario files lie in the project, there lies what they import.
        here = place / within
        beside = [here / file.parent.relative_to(self.directory) for file in self.scenarios
                  if file.is_relative_to(self.directory)]
        source = [here / "src"] if (here / "src").is_dir() else []
        return Side(self.kvmattr, tuple(dict.fromkeys([*beside, here, *source])), alone=True, working=working)

    def _fill(self, root: Path, inside: Path, kind: str, target: Path) -> None:
        if not self.install:
            shutil.copytree(root, target, dirs_exist_ok=True, symlinks=True)
            return
        work = target / "work"          # builds write beside their sources
        shutil.copytree(root, work, symlinks=True)
        source = work / inside.relative_to(root)
        try:
            command = [word.format(python=sys.executable, source=source, target=target)
                       for word in shlex.split(self.install)]
        except (KeyError, ValueError, IndexError) as error:
            raise Usage(f"--install {self.install}: {{python}}, {{source}} and {{target}} are filled in, nothing else "
                        f"({error})") from None
        try:
            running.run(command, f"install of {self.directory.name} ({kind or 'plain'}, kept in {cache.directory()})",
                        cwd=source, environment={**os.environ, **builds.layout(kind == "shifted")},
                        failed=lambda code: f"the install command of {self.directory} failed ({code}): "
                        f"{shlex.join(command)}{_HINT * (self.install == INSTALL)}")
        except OSError as error:
            raise Usage(f"--install {self.install}: {error}") from None
        shutil.rmtree(work)
