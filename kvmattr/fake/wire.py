"""What the preloaded library and the server say to each other: ``client/protocol.h``, in Python."""

from __future__ import annotations

import struct
from enum import IntEnum

VERSION = 1
#: kind, flags, file, six words.
CALL = struct.Struct("<II7Q")
#: result, errno, question, address, length.
REPLY = struct.Struct("<qiIQQ")
#: Bytes that one message can have: the largest structure of an ioctl, and what a question may ask for.
LARGEST = 1 << 17

#: `flags` of a call whose structure could not be read.
UNREADABLE = 1


class Kind(IntEnum):
    """What a message of the library is."""

    HELLO = 1
    OPEN = 2
    IOCTL = 3
    FALLOCATE = 4
    MMAP = 5
    ANSWER = 6
    SEEN = 7
    CLOSED = 8
    STAT = 9


class Question(IntEnum):
    """What a message of the server is: a reply, or what it must know first."""

    NONE = 0
    WHICH = 1
    READ = 2
    ROOM = 3
    NOT_OURS = 4
