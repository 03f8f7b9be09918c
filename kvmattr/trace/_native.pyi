from collections.abc import Iterable

from kvmattr.trace.operations import Block

def parse(
    text: bytes | bytearray | memoryview, start: int, line: int, rows: Block, filled: int
) -> tuple[int, int, int]: ...
def look_for(words: Iterable[bytes]) -> None: ...
def next_line(
    text: bytes | bytearray | memoryview, start: int, line: int, native: bool
) -> tuple[int, int, int]: ...
