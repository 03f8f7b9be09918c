"""What of the balloon is judged: two workloads, and one claim."""

from __future__ import annotations

from balloon import Balloon

from kvmattr.gate import Versus, Work, claim, scenario


@scenario(sizes=[1 << n for n in range(14, 25, 2)], growth="constant")
def inflate_block(npages: int) -> Work:
    """Give 2 MiB and take them back, in guests of 64 MiB to 64 GiB."""
    balloon = Balloon(npages)

    def run() -> None:
        assert balloon.inflate(512, 1024) == 512
        assert balloon.deflate() == 512
    return Work(run, [balloon.pages], operations=2)


@scenario(sizes=[16, 64, 256, 1024, 4096], growth="constant")
def inflate_scattered(count: int) -> Work:
    """Give single pages, one in each block: memory a page, and effort a page."""
    balloon = Balloon(count * 512)

    def run() -> None:
        for block in range(count):
            balloon.pages.write(512 * block + 1, 512 * block + 2, 1)
        balloon.deflate()
    return Work(run, [balloon.pages], operations=count)


@claim(at_least=3)
def one_call_beats_one_call_a_page() -> Versus:
    """Why inflate() takes a range."""
    balloon = Balloon(1 << 20)

    def by_page() -> None:
        for gfn in range(512, 1024):
            balloon.pages.or_(gfn, gfn + 1, 1)
        balloon.deflate()

    def by_range() -> None:
        balloon.inflate(512, 1024)
        balloon.deflate()
    return Versus(by_range, by_page)
