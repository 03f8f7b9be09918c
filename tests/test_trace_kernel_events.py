"""What tracers wrote of known conversions on a real kernel: Linux 7.2.13 under emulation, by emulation/events.py."""

import json
from pathlib import Path

import pytest

from kvmattr.trace import SetAttributes, read

LOGS = Path(__file__).parent / "data" / "kernel-events"
#: What the main thread has done, and another one: three refused calls between them have no event.
MAIN, OTHER = ([SetAttributes(*each) for each in ranges]
               for ranges in json.loads((LOGS / "conversions.json").read_text()))
ONE_VM = sorted(path.name for path in LOGS.glob("*.log") if path.name != "ftrace-two.log")


@pytest.mark.parametrize("name", ONE_VM)
def test_a_real_log_is_read_as_it_was_done(name):
    with read(LOGS / name, strict=True) as trace:
        assert list(trace) == MAIN + OTHER
        assert (trace.unread_count, trace.mentions, trace.attribute_calls) == (0, 0, 7)
        # Who wrote a line is known in each form, and in some the process of both threads.
        assert [note.text.partition(" (")[0] for note in trace.notes] == (
            [] if name in ("ftrace-tgid.log", "perf-pid.log") else ["conversions by 2 threads"])
        times = [int(time) for block in trace.blocks() for time in block["time"]]
        assert times == sorted(times)
        assert 0 < times[0] < times[-1] < 10**12


def test_two_vms_at_once_are_told_apart_by_their_processes():
    """Two programs that did the same at once, of a kernel that was told to record processes."""
    first, second = "VM 1 first on line 13 by threads 60, 61, ", "VM 2 first on line 20 by threads 59, 62, "
    with pytest.raises(ValueError, match=f"found 2 VMs: choose by --vm or --pid: {first}process '60', 7 calls; {second}"
                       "process '59', 7 calls "):
        read(LOGS / "ftrace-two.log")
    for chosen in ({"vm": 1}, {"vm": 2}, {"pid": 60}, {"pid": 62}):
        with read(LOGS / "ftrace-two.log", **chosen) as trace:
            assert (list(trace), trace.notes) == (MAIN + OTHER, [])


@pytest.mark.parametrize("name", [name for name in ONE_VM if name not in ("ftrace-tgid.log", "perf-pid.log")])
def test_a_thread_of_a_real_log_is_picked(name):
    with read(LOGS / name) as trace:
        threads = [int(word) for word in trace.notes[0].text.partition("(")[2].partition(")")[0].split(", ")]
    assert threads[1] > threads[0]
    with read(LOGS / name, pid=threads[1]) as trace:
        assert list(trace) == OTHER
