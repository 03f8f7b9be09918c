"""A map in a notebook: its picture, its runs as a DataFrame, and the page of the docs that shows both."""

import doctest
import sys
from pathlib import Path

import pytest

from kvmattr import VM, AttributeMap
from kvmattr.notebook import plot
from kvmattr.profiles import LINUX

PAGE = Path(__file__).resolve().parent.parent / "docs" / "notebook.md"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def guest():
    m = AttributeMap(1 << 20)
    m.write(0x1000, 0x2000, 1)
    m.write(0x8000, 0x9000, 8)
    return m


@pytest.mark.skipif(not PAGE.exists(), reason="docs are not part of the sdist's tests")
def test_the_page_of_the_docs_is_what_happens(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    assert doctest.testfile(str(PAGE), module_relative=False).failed == 0
    assert (tmp_path / "notebook.png").read_bytes().startswith(PNG)
    assert (PAGE.parent / "notebook.png").read_bytes().startswith(PNG)


def panels(picture):
    return [axes.get_title(loc="left") for axes in picture.figure.axes if axes.get_title(loc="left")]


def test_a_picture_shows_itself_and_is_written(guest, tmp_path):
    pytest.importorskip("matplotlib")
    picture = guest.plot()
    assert panels(picture) == ["private", "no exec"]
    assert picture._repr_png_().startswith(PNG)
    assert panels(guest.plot(abi="linux")) == panels(guest.plot(abi=LINUX)) == ["private"]
    assert panels(guest.plot(0x1000, 0x1800)) == ["private"]
    picture.save(str(tmp_path / "a.svg"))
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_a_machine_has_its_memslots_in_the_picture():
    pytest.importorskip("matplotlib")
    vm = VM()
    vm.set_user_memory_region(0, guest_phys_addr=1 << 30, memory_size=1 << 30)
    vm.set_memory_attributes(1 << 30, 1 << 20, 1)
    assert panels(plot(vm)) == ["private", "no memslot"]
    with pytest.raises(ValueError, match=r"^abi: a VM has its own profile, leave it out$"):
        plot(vm, abi="rfc")


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (-1, 5), (0, (1 << 20) + 1), (9, 8)])
def test_a_picture_of_no_range_is_refused(guest, start, stop):
    with pytest.raises(ValueError, match=rf"^pages \[{start}, {stop}\): a picture needs 0 <= start < stop <= 1048576$"):
        guest.plot(start, stop)


def test_runs_as_a_frame(guest):
    pytest.importorskip("pandas")
    frame = guest.to_frame(0x1800, 0x8800)
    assert frame.to_dict("list") == {"start": [0x1800, 0x2000, 0x8000], "stop": [0x2000, 0x8000, 0x8800],
                                     "pages": [0x800, 0x6000, 0x800], "attributes": [1, 0, 8]}
    assert [str(kind) for kind in frame.dtypes] == ["uint64", "uint64", "uint64", "uint8"]


def test_what_is_missing_is_named(guest, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^a DataFrame of runs needs pandas: pip install 'kvmattr\[pandas\]'$"):
        guest.to_frame()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^a picture needs matplotlib: pip install 'kvmattr\[study\]'$"):
        guest.plot()
