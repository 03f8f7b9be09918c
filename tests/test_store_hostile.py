"""from_bytes of bytes that somebody made on purpose: their checksums are right. Either the rule that they break is
named, or there is a sound map.
"""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmattr import AttributeMap
from tests.strategies import examples
from tests.test_store_serialization import every_kind

HEADER_BYTES = 44


def sealed(npages: int, body: bytes, default: int = 0, version: int = 1) -> bytes:
    """What to_bytes writes, with any content: a header, both checksums, the body."""
    header = struct.pack(
        "<8sIIQBxxxIQ", b"kvmattr\x1a", version, 0, npages, default, zlib.crc32(body), len(body)
    )
    return header + struct.pack("<I", zlib.crc32(header)) + body


def uniform(value: int, pages: int) -> bytes:
    return struct.pack("<BBQ", 0, value, pages)


def runs(*starts: int) -> bytes:
    """A block of len(starts) + 1 runs of the values 1, 2, 3 ..."""
    return struct.pack(f"<BB{len(starts)}H", 3, len(starts) + 1, *starts) + bytes(range(1, len(starts) + 2))


BITMAP = b"\1\0\2" + bytes(range(64))
PALETTE = b"\2" + bytes(range(4)) + bytes(range(128))
BYTES = b"\4" + bytes(range(256)) * 2


def test_sealed_is_what_to_bytes_writes() -> None:
    m = AttributeMap(600, 7)
    m[3] = 1
    assert sealed(600, runs(3, 4).replace(b"\1\2\3", b"\7\1\7") + uniform(7, 512), 7) == m.to_bytes()


@pytest.mark.parametrize(
    ("npages", "body", "trouble"),
    [
        (512, uniform(1, 512)[:-1], "a record is cut short (byte 0 of the body)"),
        (1024, uniform(1, 512) + BITMAP[:-1], "a record is cut short (byte 10 of the body)"),
        (512, PALETTE[:-1], "a record is cut short (byte 0 of the body)"),
        (512, BYTES[:-1], "a record is cut short (byte 0 of the body)"),
        (512, runs(1, 2)[:-1], "a record is cut short (byte 0 of the body)"),
        (512, b"\3", "a record is cut short (byte 0 of the body)"),
        (512, b"\5" + BITMAP, "unknown kind of record (byte 0 of the body)"),
        (512, uniform(1, 1024), "records reach beyond npages (byte 0 of the body)"),
        (513, uniform(1, 2**64 - 1), "records reach beyond npages (byte 0 of the body)"),
        (512, BITMAP + BITMAP, "records reach beyond npages (byte 67 of the body)"),
        (512, BITMAP + uniform(1, 1), "records reach beyond npages (byte 67 of the body)"),
        (0, uniform(1, 1), "records reach beyond npages (byte 0 of the body)"),
        (0, BITMAP, "records reach beyond npages (byte 0 of the body)"),
        (1024, BITMAP, "records end before npages (byte 67 of the body)"),
        (1, b"", "records end before npages (byte 0 of the body)"),
        (512, runs(0), "the starts of runs do not rise (byte 0 of the body)"),
        (512, runs(5, 5), "the starts of runs do not rise (byte 0 of the body)"),
        (512, runs(512), "the starts of runs do not rise (byte 0 of the body)"),
        (512, runs(65535), "the starts of runs do not rise (byte 0 of the body)"),
        (1024, uniform(1, 5) + BITMAP, "a block does not begin at a multiple of 512 pages (byte 10 of the body)"),
        (512, uniform(1, 0), "a record of no pages (byte 0 of the body)"),
        (512, b"\3\0" + BITMAP, "a record of no pages (byte 0 of the body)"),
    ],
)
def test_a_record_that_breaks_a_rule_is_named(npages: int, body: bytes, trouble: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared whole
        AttributeMap.from_bytes(sealed(npages, body))
    assert str(raised.value) == f"saved AttributeMap is damaged: {trouble}"


def test_a_header_that_breaks_a_rule_is_named() -> None:
    sound = sealed(512, BITMAP)
    tampered = sound[:12] + b"\1" + sound[13:]
    for data, text in (
        (b"", "not a saved AttributeMap: 0 bytes, the header has 44"),
        (sound[: HEADER_BYTES - 1], "not a saved AttributeMap: 43 bytes, the header has 44"),
        (b"K" + sound[1:], "not a saved AttributeMap: begins with b'Kvmattr\\x1a', need b'kvmattr\\x1a'"),
        (tampered, "saved AttributeMap is damaged: the header's checksum does not match"),
        (sealed(512, BITMAP, version=2), "saved AttributeMap has format 2: this kvmattr reads format 1"),
        (
            sealed(2**52 + 1, BITMAP),
            "saved AttributeMap is damaged: npages 4503599627370497 is outside 0..4503599627370496",
        ),
        (
            sound + b"\0",
            "saved AttributeMap is damaged: 68 bytes after the header, which announces 67",
        ),
        (sound[:-1] + b"\0", "saved AttributeMap is damaged: the checksum does not match"),
    ):
        with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared whole
            AttributeMap.from_bytes(data)
        assert str(raised.value) == text


RECORDS = st.one_of(
    st.builds(uniform, st.integers(0, 255), st.sampled_from([0, 1, 511, 512, 513, 2**18, 2**52, 2**64 - 512])),
    st.builds(lambda starts: runs(*starts), st.lists(st.integers(0, 600), max_size=20)),
    st.builds(lambda starts: runs(*sorted(set(starts))), st.lists(st.integers(1, 511), max_size=254)),
    st.builds(lambda bits: b"\1\5\6" + bits, st.binary(min_size=64, max_size=64)),
    st.builds(lambda bits: b"\2\1\2\1\4" + bits, st.binary(min_size=128, max_size=128)),
    st.builds(lambda pages: b"\4" + pages, st.binary(min_size=512, max_size=512)),
    st.binary(max_size=20),
)


def read(data: bytes) -> None:
    """A map that is sound and goes out and in again, or ValueError."""
    try:
        m = AttributeMap.from_bytes(data)
    except ValueError:
        return
    m.validate()
    assert AttributeMap.from_bytes(m.to_bytes()) == m


@settings(max_examples=examples(300))
@given(st.sampled_from([0, 1, 512, 700, 2048, 2**20 + 1, 2**52]), st.lists(RECORDS, max_size=12))
def test_any_records(npages: int, records: list[bytes]) -> None:
    read(sealed(npages, b"".join(records)))


@settings(max_examples=examples(300))
@given(st.integers(0, 2**52 + 1), st.data())
def test_a_sound_body_with_cells_changed_and_pieces_moved(npages: int, data: st.DataObject) -> None:
    body = bytearray(every_kind().to_bytes()[HEADER_BYTES:])
    for place, cell in data.draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=5)):
        body[place] = cell
    first, last, to = (data.draw(st.integers(0, len(body))) for _ in range(3))
    piece = body[first:last]
    if data.draw(st.booleans()):
        body[to:to] = piece
    read(sealed(data.draw(st.sampled_from([npages, 2**52])), bytes(body)))
