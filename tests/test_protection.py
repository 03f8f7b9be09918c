"""Which protections a machine can enforce: the mail's list, the VSM series' rule, read-only memslots."""

from itertools import product

import pytest

from kvmattr.protection import FULL_ACCESS, NO_ACCESS, Access, Capabilities, mail_rule, vsm_rule

R, W, X = Access.READ, Access.WRITE, Access.EXEC
ALL_CAPABILITIES = [Capabilities(*flags) for flags in product((False, True), repeat=3)]
PROTECTIONS = [Access(value) for value in range(8)]

#: effective protection -> the capabilities without which the mail disallows it
NEEDS = {
    NO_ACCESS: set(),
    R: {"no_exec"},
    R | W: {"no_exec"},
    W: {"write_only"},
    W | X: {"write_only", "exec_only"},
    X: {"exec_only"},
    R | X: set(),
    R | W | X: set(),
}


def having(capabilities):
    return {name for name in Capabilities._fields if getattr(capabilities, name)}


with_all_capabilities = pytest.mark.parametrize("capabilities", ALL_CAPABILITIES,
                                                ids=lambda c: "+".join(sorted(having(c))) or "nothing")


@with_all_capabilities
@pytest.mark.parametrize("allowed", PROTECTIONS, ids=str)
@pytest.mark.parametrize("private", [False, True], ids=["shared", "private"])
def test_the_mails_disallowed_protections(allowed, private, capabilities):
    assert mail_rule(allowed, private, capabilities) == (NEEDS[allowed] <= having(capabilities))


@with_all_capabilities
def test_vsm_write_and_exec_need_read_whatever_the_capabilities(capabilities):
    legal = {allowed for allowed in PROTECTIONS if vsm_rule(allowed, False, capabilities)}
    assert legal == {NO_ACCESS, R, R | W, R | X, R | W | X}


@with_all_capabilities
def test_vsm_private_excludes_restrictions(capabilities):
    assert {allowed for allowed in PROTECTIONS if vsm_rule(allowed, True, capabilities)} == {FULL_ACCESS}


@with_all_capabilities
@pytest.mark.parametrize("rule", [mail_rule, vsm_rule], ids=["mail", "vsm"])
def test_a_read_only_memslot_leaves_legal_what_is_legal(rule, capabilities):
    for allowed in PROTECTIONS:
        if rule(allowed, False, capabilities):
            assert rule(allowed & ~W, False, capabilities), allowed
