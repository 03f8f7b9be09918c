"""Threads without the GIL, and fork: what they see, that they end, and what ThreadSanitizer says."""

from __future__ import annotations

import os
import signal
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvmattr import AttributeMap
from tests.embedding import building


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return building.install(tmp_path_factory.mktemp("installed"))


@pytest.mark.parametrize("command", ["gcc", "clang"])
def test_readers_and_cursors_beside_a_writer(site: Path, tmp_path: Path, command: str) -> None:
    program = building.compile_program(
        building.SOURCES / "stress.c",
        ["-O2", *building.include_options(site)],
        tmp_path,
        building.compiler(command),
    )
    for words in ([], ["python"]):
        assert building.run(program, *words, cwd=tmp_path, site=site) == "sound\n"


@pytest.mark.slow
@pytest.mark.parametrize("build", [[], ["-DKVMATTR_LOCKING=1"]], ids=["as it is", "as without a GIL"])
def test_thread_sanitizer_finds_nothing(site: Path, tmp_path: Path, build: list[str]) -> None:
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    try:
        building.run(building.compiler("gcc"), "-fsanitize=thread", probe, "-o", "probe", cwd=tmp_path)
        building.run(tmp_path / "probe", cwd=tmp_path)
    except pytest.fail.Exception as failed:
        pytest.skip(f"no ThreadSanitizer here: {failed}")
    watched = building.rebuilt_core(site, tmp_path, "-fsanitize=thread", *build)
    program = building.compile_program(
        building.SOURCES / "stress.c",
        ["-O1", "-fsanitize=thread", *building.include_options(site)],
        tmp_path,
        building.compiler("gcc"),
    )
    # Without a GIL Python's threads meet at locks of its own, of which an interpreter tells ThreadSanitizer only where
    # it was built with it (dev.py freethreaded --tsan).
    for words in [[]] if sysconfig.get_config_var("Py_GIL_DISABLED") else [[], ["python"]]:
        assert (
            building.run(program, *words, cwd=tmp_path, site=watched, TSAN_OPTIONS="halt_on_error=1")
            == "sound\n"
        )


# ---- fork ----


def in_child(work: Callable[[], None]) -> int:
    """Run work in a forked child that is killed if it hangs; its exit status, 0 if all was well."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(60)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_child_can_use_a_map_that_another_thread_was_changing() -> None:
    m = AttributeMap(1 << 20)
    starts = np.random.default_rng(1).integers(0, 1 << 19, 20_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            m.update_many(starts, starts + 700, 1, 1)
            m.update_many(starts, starts + 300, 0xFE, 2)

    def use() -> None:
        m.validate()
        m.write(5, 5000, 3)
        assert m.uniform(5, 5000) == 3
        m.restore(m.snapshot())
        m.validate()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        statuses = [in_child(use) for _ in range(20)]
    finally:
        stop.set()
        writer.join()
    assert statuses == [0] * 20


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_child_drops_what_readers_had_pinned() -> None:
    """Pinned roots lie on the stacks of threads that the child does not have; it uses those stacks again."""
    m = AttributeMap(1 << 24)
    m.put(np.random.default_rng(1).integers(0, 1 << 24, 200_000), 1)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            m.to_numpy(0, 1 << 24)

    def use() -> None:
        threads = [threading.Thread(target=lambda: bytearray(1 << 16)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # A pin that is left would keep a second reference to the root, and each write would copy its way.
        m[1] = 2
        copies = m.stats()["node_copies"]
        for gfn in range(3, 1 << 20, 1 << 12):
            m[gfn] = 2
        assert m.stats()["node_copies"] == copies
        m.validate()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        time.sleep(0.05)
        statuses = [in_child(use) for _ in range(6)]
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert statuses == [0] * 6


def test_a_child_has_a_copy_of_its_own() -> None:
    m = AttributeMap(1000)

    def use() -> None:
        m.write(0, 1000, 7)

    assert in_child(use) == 0
    assert m.uniform(0, 1000) == 0
