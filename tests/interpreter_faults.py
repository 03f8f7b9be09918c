"""What the interpreter itself does wrong where it is refused memory, found by trying it: not by its version."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
import sysconfig

import pytest

# CPython 3.13 without a GIL keeps a freed list for the next one, with the address of its items (list_dealloc).
# PyList_New takes it and, refused memory for the new items, frees the list, and with it the old items once more.
_REFUSED_LIST = """
import _testcapi, os, sys
item, text = object(), "a b c"
freed = [item, item, item]
del freed
held = sys.getrefcount(item)
_testcapi.set_nomemory(0, 1)
try:
    text.split()
except MemoryError:
    pass
finally:
    _testcapi.remove_mem_hooks()
os._exit(sys.getrefcount(item) != held)
"""


# CPython 3.12 makes a function of the code on its stack (MAKE_FUNCTION), and gives that up twice where it is refused
# memory for the function: the code is freed while its module still has it.
_REFUSED_FUNCTION = """
import _testcapi, os, sys
def make():
    return lambda: True
[code] = [const for const in make.__code__.co_consts if hasattr(const, "co_code")]
held = sys.getrefcount(code)
_testcapi.set_nomemory(0, 1)
try:
    make()
except MemoryError:
    pass
finally:
    _testcapi.remove_mem_hooks()
os._exit(sys.getrefcount(code) != held)
"""


@functools.cache
def fault() -> str:
    """What this interpreter does wrong there, in words; empty if it does nothing that we know of."""
    def fails(program: str) -> bool:
        return subprocess.run([sys.executable, "-c", program], timeout=60).returncode != 0

    if importlib.util.find_spec("_testcapi") is None:       # and nothing is refused either
        return ""
    # With a GIL the items of a list that is kept are forgotten.
    if sysconfig.get_config_var("Py_GIL_DISABLED") and fails(_REFUSED_LIST):
        return "this CPython frees the items of another list where PyList_New is refused its own"
    if fails(_REFUSED_FUNCTION):
        return "this CPython gives up the code of a function twice where it is refused memory for the function"
    return ""


#: Of tests that refuse requests while code of the interpreter's makes lists and functions: what follows is then no
#: fault of ours and none that we could find.
needs_a_sound_interpreter = pytest.mark.skipif(bool(fault()), reason=fault())
