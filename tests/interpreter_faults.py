"""What the interpreter itself does wrong where it is refused memory, found by trying it: not by its version."""

from __future__ import annotations

import functools
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


@functools.cache
def frees_items_twice() -> bool:
    """Whether this interpreter frees the items of another list where a new one is refused memory for its own."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):     # there the items of a list that is kept are forgotten
        return False
    return subprocess.run([sys.executable, "-c", _REFUSED_LIST], timeout=60).returncode != 0


#: Of tests that refuse requests while code of the interpreter's makes lists: what follows is then no fault of ours and
#: none that we could find.
needs_lists_that_may_be_refused = pytest.mark.skipif(
    frees_items_twice(), reason="this CPython frees the items of another list where PyList_New is refused its own")
