"""Out of memory while a file is written: each request of the interpreter is refused once, for every function of
measure.writing and for everyone who calls it. And no writer is in no list."""

from __future__ import annotations

import ast
import contextlib
import gc
import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvmattr
from kvmattr.fake.recording import Recording
from kvmattr.gate import history
from kvmattr.gate.baseline import Baseline
from kvmattr.gate.verdict import Judgement
from kvmattr.measure import writing
from kvmattr.measure.writing import CannotWrite
from kvmattr.study.output import Outputs
from kvmattr.study.report import Report
from kvmattr.trace import SetAttributes, write
from kvmattr.trace.writing import open_text
from tests.interpreter_faults import needs_a_sound_interpreter

testcapi = pytest.importorskip("_testcapi", reason="this Python has no module that refuses memory")

CLEAN = 40              # calls in a row that nothing was refused: there was no further request
MOST_REQUESTS = 4000


class Asked:
    """The options of a command that writes a report."""

    def __init__(self, folder: Path) -> None:
        self.json, self.csv = str(folder / "old"), str(folder / "new")
        self.html = self.plots = None


def in_parts(folder: Path) -> None:
    with writing.opened(folder / "old") as file:
        for _ in range(3):
            file.write(b"part\n" * 9)


def in_place(folder: Path) -> None:
    with writing.opened(folder / "old", in_place=True) as file:
        file.write(b"new\n")


def as_text(folder: Path) -> None:
    with open_text(folder / "new.gz") as file:
        file.write("# text\n")


def to_a_device(folder: Path) -> None:
    writing.write("/dev/null", "words")


def each(folder: Path) -> Any:
    return raised(writing.write_each([(folder / "old", lambda: "one\n"), (folder / "new", lambda: b"two\n")]))


def raised(errors: list[CannotWrite]) -> None:
    """Errors that a function returns are as good as raised."""
    if errors:
        raise errors[0]


def told(folder: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        writing.tell("test", ["a"], [CannotWrite.reason("b", 28, "is full")])


def named(folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()), writing.named_stdout():
        print("words")


def outputs(folder: Path, *steps: str) -> None:
    asked = Asked(folder)
    with contextlib.redirect_stderr(io.StringIO()):
        made = Outputs("test", asked)       # type: ignore[arg-type]
        for step in steps:
            if getattr(made, step)(report()) is False:
                raise MemoryError("told in words")


def report() -> Report:
    return Report({}, {}, {}, [])


def recorded(folder: Path) -> None:
    with Recording(folder / "new"):
        pass


#: Function: its call in a folder. The words after a colon say what is special.
SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "measure.writing.is_stdout": lambda folder: writing.is_stdout(folder / "old"),
    "measure.writing.people": lambda folder: writing.people(folder / "old", None),
    "measure.writing.is_regular": lambda folder: writing.is_regular(folder / "new"),
    "measure.writing.check": lambda folder: writing.check(folder / "old", folder / "new", read=[folder / "other"]),
    "measure.writing.check_directory": lambda folder: writing.check_directory(folder / "a" / "b"),
    "measure.writing.write": lambda folder: writing.write(folder / "old", "new\n"),
    "measure.writing.write: a new file": lambda folder: writing.write(folder / "new", b"new\n"),
    "measure.writing.write: through a link": lambda folder: writing.write(folder / "link", b"new\n"),
    "measure.writing.write: behind": lambda folder: writing.write(folder / "old", b"new\n", append=True),
    "measure.writing.write: a device": to_a_device,
    "measure.writing.write_each": each,
    "measure.writing.tell": told,
    "measure.writing.named_stdout": named,
    "measure.writing.opened": in_parts,
    "measure.writing.opened: in place": in_place,
    "trace.writing.open_text": as_text,
    "trace.writing.write": lambda folder: write(folder / "new", [SetAttributes(0, 4096, 8)] * 3),
    "gate.baseline.Baseline.write": lambda folder: Baseline(calls={"a/1": 1}).write(folder / "old"),
    "gate.history.append": lambda folder: history.append(folder / "old", folder, Baseline(), Judgement()),
    "study.report.Report.save": lambda folder: report().save(folder / "new.csv"),
    "study.output.Outputs": lambda folder: outputs(folder),
    "study.output.Outputs.keep": lambda folder: outputs(folder, "keep"),
    "study.output.Outputs.write": lambda folder: outputs(folder, "write"),
    "fake.recording.Recording": recorded,
}

#: They leave what was written when it ended, or a part of it.
IN_PLACE = {"measure.writing.write: behind", "measure.writing.opened: in place", "gate.history.append",
            "fake.recording.Recording"}
#: They write files one by one: each is its old or its new self.
SEVERAL = {"measure.writing.write_each", "study.output.Outputs.keep", "study.output.Outputs.write"}
#: Commands, and who hands one content that is made to one of the functions above.
MADE_OF_OTHERS = {
    "measure.figures.save": "measure.writing.write",
    "gate.history.plot": "measure.writing.write",
    "gate.command._tell": "measure.writing.write",
    "study.output.Outputs._write_plots": "measure.writing.write_each",
    "study.compare.run": "measure.writing.write_each",
    "trace.command.run": "measure.writing.write",
    "show.run": "measure.writing.check",
}


def calls_a_writer(node: ast.AST, imported: set[str]) -> bool:
    names = {"write", "write_each", "opened", "check", "check_directory"}
    return any(isinstance(call, ast.Call) and (
        (isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
         and call.func.value.id == "writing" and call.func.attr in names)
        or (isinstance(call.func, ast.Name) and call.func.id in imported & names)) for call in ast.walk(node))


def writers() -> Iterator[str]:
    """Every function of the package that calls one of measure.writing."""
    root = Path(kvmattr.__file__).parent
    for path in sorted(root.rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                    and node.module == "kvmattr.measure.writing" for alias in node.names}
        for node in tree.body:
            inner = node.body if isinstance(node, ast.ClassDef) else [node]
            for function in inner:
                if isinstance(function, ast.FunctionDef) and module != "measure.writing" \
                        and calls_a_writer(function, imported):
                    names = [module, *([node.name] if isinstance(node, ast.ClassDef) else []), function.name]
                    yield ".".join(names).removesuffix(".__init__")


def test_no_writer_is_in_no_list() -> None:
    covered = {name.partition(":")[0] for name in SCENARIOS}
    own = {f"measure.writing.{name}" for name, value in vars(writing).items()
           if inspect.isfunction(value) and value.__module__ == writing.__name__ and not name.startswith("_")}
    assert {*own, *writers()} - covered - set(MADE_OF_OTHERS) == set()
    assert set(MADE_OF_OTHERS.values()) <= covered


class World:
    """A folder with an old file, a link to it, and what is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in folder.iterdir():
            path.unlink()
        (folder / "old").write_bytes(b"old\n")
        (folder / "link").symlink_to("old")

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def is_sound(name: str, files: dict[str, bytes], before: dict[str, bytes], after: dict[str, bytes]) -> bool:
    """Whether a call that was refused memory has left what it may leave."""
    if name in IN_PLACE:
        return set(files) <= set(after) and all(
            content in (before.get(each), b"") or after[each].startswith(content) for each, content in files.items())
    if name in SEVERAL:
        return set(files) <= set(after) and all(
            content in (before.get(each), after[each]) for each, content in files.items())
    return files == before


@needs_a_sound_interpreter
# What was refused memory on its way into `with` is closed when it is dropped, with Python's warning.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_refused_request_of_the_interpreter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)      # of thousands of files
    monkeypatch.setattr(history.repository, "head", lambda directory: "1" * 40)
    monkeypatch.setattr(history.time, "strftime", lambda *words: "a day")
    call = SCENARIOS[name]
    World(tmp_path)
    call(tmp_path)      # what is made once, lazily, is there
    world = World(tmp_path)
    before = world.files()
    expected = call(tmp_path)
    after, opened = world.files(), descriptors()
    number = clean = refused = 0
    gc.disable()
    gc.freeze()
    try:
        while clean < CLEAN:
            world = World(tmp_path)
            error: BaseException | None = None
            answer = None
            testcapi.set_nomemory(number, number + 1)
            try:
                answer = call(tmp_path)
            except Exception as caught:      # which one, CPython decides
                error = caught.with_traceback(None)
            finally:
                testcapi.remove_mem_hooks()
            if error is not None:
                error.__context__ = error.__cause__ = None
                gc.collect()        # what an exception's frames hold in a circle
            files = world.files()
            if error is None:
                assert (answer, files) == (expected, after), number
            else:
                assert is_sound(name, files, before, after) or files == after, (number, error, files)
            assert descriptors() == opened, (number, error)
            World(tmp_path)
            assert call(tmp_path) == expected, number
            assert world.files() == after, number
            refused += error is not None
            clean = 0 if error else clean + 1
            number += 1
            assert number < MOST_REQUESTS
    finally:
        gc.unfreeze()
        gc.enable()
    assert refused


@pytest.mark.parametrize("name", ["measure.writing.write", "measure.writing.write: a new file",
                                  "measure.writing.opened", "measure.writing.check"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
# What is raised in __del__ Python tells and drops; measure.ending raises a signal's again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_at_any_bytecode(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in each place of measure.writing where Python would raise it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    call, place, raised_there = SCENARIOS[name], 0, True
    World(tmp_path)
    call(tmp_path)
    world = World(tmp_path)
    before = world.files()
    call(tmp_path)
    after, opened = world.files(), descriptors()

    while raised_there:
        world = World(tmp_path)
        left, raised_there = place, False

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal left, raised_there
            if frame.f_code.co_filename != writing.__file__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left < 0 and not raised_there:
                    raised_there = True
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            call(tmp_path)
        except KeyboardInterrupt as caught:
            caught.with_traceback(None)
        finally:
            sys.settrace(None)
        files = world.files()
        if files not in (before, after) or descriptors() != opened:
            gc.collect()
            files = world.files()
        assert files in (before, after), place
        assert descriptors() == opened, place
        place += 1
    assert place > 100
