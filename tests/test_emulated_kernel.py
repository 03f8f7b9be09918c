"""`python3 dev.py kernel`: its smallest job where QEMU and an image exist, its complaints anywhere."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from emulation import run, table

ROOT = Path(__file__).parents[1]


def image() -> Path | None:
    """An image from the environment, or the one that ``dev.py kernel --source`` built."""
    named = os.environ.get("KVMATTR_KERNEL_IMAGE")
    found = Path(named) if named else run.built_image()
    return found if found.is_file() else None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no qemu-system-x86_64 here")
@pytest.mark.skipif(image() is None, reason="no kernel image here: `python3 dev.py kernel --source DIR` builds one, "
                    "KVMATTR_KERNEL_IMAGE names another")
def test_the_smallest_job_on_an_emulated_kernel(tmp_path, capfd):
    assert run.main(["--image", str(image()), "--out", str(tmp_path), "--jobs", "info", "--emulator", "qemu"]) == 0
    said = (tmp_path / "info.txt").read_text()
    assert "  memory attributes: 8\n" in said
    assert "  kvm-attributes: yes\n" in said
    assert "== info: ok" in capfd.readouterr().out


def test_what_is_missing_is_told(tmp_path, capsys, monkeypatch):
    assert run.main(["--image", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"dev.py kernel: no kernel image {tmp_path / 'none'}: --source DIR builds one\n"
    assert run.main(["--source", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"dev.py kernel: {tmp_path} is no kernel source tree: it has no scripts/kconfig/merge_config.sh\n")
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    with pytest.raises(run.Missing, match=r"^make, flex not found: on Debian, apt-get install make flex$"):
        run.needed("make", "flex")
    with pytest.raises(SystemExit):
        run.main(["--jobs", "info,nope"])
    assert "unknown job 'nope': known are info, tests, study" in capsys.readouterr().err


def machine(monkeypatch, script):
    """In place of the emulator a shell that runs a script: what it knows of its jobs is their part's name."""
    monkeypatch.setattr(run, "qemu_command", lambda image, out, part: ["sh", "-c", script.format(out=out, part=part)])
    monkeypatch.setattr(run, "_draw", lambda out: None)


def test_jobs_that_count_have_a_machine_of_their_own_beside_the_others(tmp_path, capsys, monkeypatch):
    waiting = "[ ! -f {out}/here-asked -o ! -f {out}/here-counted ] && [ $n -lt 600 ]"
    machine(monkeypatch, "echo == {part}; touch {out}/here-{part}; n=0; while " + waiting
            + "; do sleep .1; n=$((n+1)); done; [ $n -lt 600 ]; echo $? >{out}/status-{part}")
    (tmp_path / "image").touch()
    words = ["--image", str(tmp_path / "image"), "--out", str(tmp_path), "--emulator", "qemu"]
    assert run.main(words) == 0
    said = capsys.readouterr().out
    assert re.search("^== asked, [0-9]+ s of CPU since the start$", said, re.MULTILINE)
    assert "jobs.py /mnt info tests" in (tmp_path / "command-asked").read_text()
    assert "jobs.py /mnt study" in (tmp_path / "command-counted").read_text()
    assert "== counted\n" in (tmp_path / "console-counted.txt").read_text()


@pytest.mark.parametrize(("script", "code", "said"), [
    ("echo 0 >{out}/status-asked; echo 1 >{out}/status-counted", 1, ""),
    ("echo 0 >{out}/status-asked", 2,
     "the emulated machine ended before its command did: see {out}/console-counted.txt\n"),
    ("exec sleep 600", 2, "the emulator was ended after 1 s (--timeout): see {out}/console-asked.txt\n")])
def test_how_machines_end(tmp_path, capsys, monkeypatch, script, code, said):
    machine(monkeypatch, script)
    (tmp_path / "image").touch()
    seconds = "1" if "sleep" in script else "600"
    words = ["--image", str(tmp_path / "image"), "--out", str(tmp_path), "--emulator", "qemu", "--timeout", seconds]
    assert run.main(words) == code
    assert capsys.readouterr().err == (f"dev.py kernel: {said.format(out=tmp_path)}" if said else "")


def test_a_configuration_without_the_vm_type_is_refused(capsys):
    wanted = "# why\nCONFIG_KVM=y\nCONFIG_KVM_SW_PROTECTED_VM=y\nCONFIG_NUMA=n\nCONFIG_SMP=n\n"
    run._say_unmet(wanted, "CONFIG_KVM=y\nCONFIG_KVM_SW_PROTECTED_VM=y\n# CONFIG_NUMA is not set\n")
    assert capsys.readouterr().out == ""
    run._say_unmet(wanted, "CONFIG_KVM_SW_PROTECTED_VM=y\nCONFIG_SMP=y\n")
    assert capsys.readouterr().out == "this kernel did not take: CONFIG_KVM=y CONFIG_SMP=n\n"
    with pytest.raises(run.Missing, match=r"has no CONFIG_KVM_SW_PROTECTED_VM: attributes came with Linux 6\.8"):
        run._say_unmet(wanted, "CONFIG_KVM=y\n")


def cell(scenario, backend, size, middle, status="ok", note=""):
    samples = [] if middle is None else [middle + 3000, middle, middle - 1]
    return {"scenario": scenario, "backend": backend, "size": size, "samples": samples, "status": status, "note": note}


def report(*cells):
    return {"machine": {"kernel": "7.2.13", "cpu": "EPYC", "kvmattr": "0", "started": "now"}, "results": list(cells)}


def test_the_table_of_instructions():
    made = table.counted(report(
        cell("conversion-single", "kvm-attributes", 1, 25_800.4),
        cell("conversion-single", "kvm-memslots", 1, 81_000.6),
        cell("conversion", "kvm-attributes", 1000, 4_000.0), cell("conversion", "store", 1000, 1.0),
        cell("conversion", "kvm-memslots", 1000, None, "failed", "failed at k = 16392: EINVAL")))
    assert made["kernel"] == "7.2.13"
    assert [row["earlier"] for row in made["rows"]] == [1, 1000]
    assert table.markdown(made).splitlines()[2:] == [
        "| 1 | 25,800 | 81,001 |  |  |", "| 1,000 |  |  | 4,000 | failed at k = 16392: EINVAL |"]
    assert json.loads(json.dumps(made)) == made
    for bad in (cell("conversion", "kvm-attributes", 1, None, "wrong", "page 0x5 reads back as 0"),
                cell("conversion", "kvm-attributes", 1, 5.0, "ok", "its state was not checked: no")):
        with pytest.raises(ValueError, match=r"^kvm-attributes in conversion at 1: (page|its state)"):
            table.counted(report(bad))


def test_the_tree_has_what_the_machine_inside_runs():
    assert os.access(ROOT / "emulation" / "init.sh", os.X_OK)
    assert all((ROOT / name).is_file() for name in __import__("emulation.jobs").jobs._TESTS)


def test_the_pages_show_the_numbers_that_were_counted():
    counted = json.loads((ROOT / "emulation" / "linux-7.2.13.json").read_text())
    rows = table.markdown(counted).splitlines()[2:]
    assert len(rows) == 5
    for name in ("README.md", "docs/study.md"):
        page = ROOT / name
        if not page.exists():
            pytest.skip("the pages are not beside the tests")
        shown = [line.replace("*", "") for line in page.read_text().splitlines()]
        for row in rows:
            # "failed at k = 16397: EINVAL" is shown as "EINVAL at 16,397".
            wanted = re.sub(r"failed at k = ([0-9]+): (E[A-Z]+)", lambda end: f"{end[2]} at {int(end[1]):,}", row)
            assert wanted in shown, (name, wanted)
