"""What may be done to a page: accesses, and the rules that say which protections a machine can enforce.

The final protection of a page is its memslot's AND its attributes'. The mail: "the final protections are
the combination of memslot+attributes, i.e. a read-only memslot couldn't be made writable via attributes".
Attributes only take away, so a rule looks at what an attribute byte leaves of a full read-write-execute slot:

=================  =============================================================================
effective           may be set
=================  =============================================================================
none, RX, RWX       always
R, RW               with ``no_exec``: "until KVM plumbs through support for no-exec"
X                   with ``exec_only``: "until KVM plumbs through support for exec-only"
W                   with ``write_only``: "unless there's an arch that supports write-only memory"
WX                  with ``write_only`` and ``exec_only``
=================  =============================================================================

That is one rule a property of the hardware: written and not read needs ``write_only``, executed and not read
``exec_only``, read and not executed ``no_exec``. Where reading is forbidden a fetch is too, unless there is
``exec_only``, so W asks for no ``no_exec``; WX is W and X at once.

In each row, taking WRITE away leads to a row that asks for no more. So no change of a memslot can make a
stored attribute illegal, and memslot calls never look at attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag
from typing import NamedTuple


class Access(IntFlag):
    """What an instruction does to memory, and so also what a page allows; several may be combined.

    The values are those of the ``KVM_MEMORY_EXIT_FLAG_...`` bits that report a refused access.

    >>> Access.READ | Access.EXEC
    <Access.READ|EXEC: 5>
    """

    READ = 1
    WRITE = 2
    EXEC = 4


#: Nothing is allowed.
NO_ACCESS = Access(0)
#: Everything is.
FULL_ACCESS = Access.READ | Access.WRITE | Access.EXEC


class Capabilities(NamedTuple):
    """Which protections beyond none, RX and RWX the hardware of a machine can enforce."""

    no_exec: bool = False
    exec_only: bool = False
    write_only: bool = False


#: ``rule(allowed, private, capabilities)``: may a page allow just these accesses?
Rule = Callable[[Access, bool, Capabilities], bool]


def mail_rule(allowed: Access, private: bool, capabilities: Capabilities) -> bool:
    """The mail's "disallowed effective protections", each with the capability that lifts it.

    >>> [mail_rule(Access.READ, False, Capabilities(no_exec)) for no_exec in (False, True)]
    [False, True]
    """
    read, write, execute = (bool(allowed & access) for access in Access)
    if write and not read and not capabilities.write_only:
        return False
    if execute and not read and not capabilities.exec_only:
        return False
    return execute or not read or capabilities.no_exec


def vsm_rule(allowed: Access, private: bool, capabilities: Capabilities) -> bool:
    """The VSM series' rule: write and exec need read, PRIVATE excludes restrictions; no capability counts.

    >>> vsm_rule(Access.READ, False, Capabilities()), vsm_rule(Access.READ, True, Capabilities())
    (True, False)
    """
    if private:
        return allowed == FULL_ACCESS
    return bool(allowed & Access.READ) or allowed == NO_ACCESS
