from kvmattr.trace.operations import Block

def parse(
    text: bytes | bytearray | memoryview, start: int, line: int, rows: Block, filled: int
) -> tuple[int, int, int]: ...
