from collections.abc import Iterable

from kvmattr.trace.operations import Block

def parse(
    text: bytes | bytearray | memoryview, start: int, line: int, rows: Block, filled: int, marks: bool
) -> tuple[int, int, int]:
    """Fill `rows` from index `filled` on with the plain lines of `text` from byte `start` on.

    `text` must end with a newline. `line` is the number of the line at `start`. Stops at the end of the text,
    when the rows are full, or at a line that is not a plain operation, a comment or blank; with `marks` also at a
    comment that holds one. Returns (start, line, filled) to go on with. The GIL is released.
    """
def look_for(words: Iterable[bytes]) -> None:
    """Make these byte strings, of 4 to 32 bytes each, what `next_line` looks for. Called once, at import."""
def next_line(
    text: bytes | bytearray | memoryview, start: int, line: int, native: bool
) -> tuple[int, int, int]:
    """The next line from byte `start` on that holds a mark, or, with `native`, may be a native one.

    `text` must end with a newline, `start` be the first byte of a line and `line` its number. Returns
    (start, line, skipped): where that line begins, its number, and how many lines before it were not blank;
    `start` is the length of the text if there is none. Time: about a nanosecond a byte. The GIL is released.
    """
