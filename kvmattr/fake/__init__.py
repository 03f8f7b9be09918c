"""A /dev/kvm that needs no kernel: a program's calls on KVM, answered by the model.

``kvmattr fake -- COMMAND ...`` runs a program whose /dev/kvm is a :class:`kvmattr.VM`; ``kvmattr shadow`` asks the
real one and compares. :class:`FakeKVM` is the same for Python, and the pytest fixture ``fake_kvm`` for tests.

>>> from kvmattr.fake import FakeKVM
>>> with FakeKVM(abi="linux-7.2") as fake:
...     fake.vms
[]
"""

from kvmattr.fake.fake_kvm import FakeKVM
from kvmattr.fake.launch import CannotCatch
from kvmattr.fake.script import Script, ScriptError

__all__ = ["CannotCatch", "FakeKVM", "Script", "ScriptError"]
