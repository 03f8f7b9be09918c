"""The bridge under Qiling, as docs/qiling.md shows it; each in a process of its own, because Qiling warns and logs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "qiling_guest.py"

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("qiling") is None, reason="qiling is not installed"),
    pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not beside the tests"),
]


def ran(*words: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example() -> None:
    assert ran(str(EXAMPLE)) == "1 refusal, flags 4 (EXEC) at +0x0 of the stack's page\neax: 42\n"


def test_a_refusal_without_on_exit_is_explained() -> None:
    program = """
import runpy, sys
from qiling import Qiling
from qiling.const import QL_ARCH, QL_OS, QL_VERBOSE
from unicorn import UcError
from kvmattr import VM
from kvmattr.bridges.unicorn import Guest
code = runpy.run_path(sys.argv[1])["CODE"]
ql = Qiling(code=code, archtype=QL_ARCH.X8664, ostype=QL_OS.LINUX, verbose=QL_VERBOSE.OFF)
vm = VM(no_exec=True)
stack = ql.arch.regs.arch_sp & -4096
vm.set_memory_attributes(stack, 4096, 2 << 2)
guest = Guest(vm, ql.uc, flat=True)
try:
    ql.run()
except UcError as error:
    print(guest.last_exit.flags, guest.last_exit.gpa == stack, guest.pc & -4096 == stack, len(error.__notes__))
"""
    assert ran("-c", program, str(EXAMPLE)) == "4 True True 1\n"
