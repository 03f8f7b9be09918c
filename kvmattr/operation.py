"""The three operations that the mail gives KVM_SET_MEMORY_ATTRIBUTES."""

from enum import IntEnum


class Operation(IntEnum):
    """What an update does with each page's attributes: WRITE replaces, OR sets bits, AND keeps bits.

    From the mail: "the ioctl() could take an 'operation' and support WRITE/OR/AND to allow
    setting/clearing individual flags".

    >>> Operation.OR, int(Operation.AND)
    (<Operation.OR: 1>, 2)
    """

    WRITE = 0
    OR = 1
    AND = 2
