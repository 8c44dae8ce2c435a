"""Random scripts about huge pages: pools, promises, mappings and files of one boot.

Small numbers around the size of a pool of 32 pages make that promises run out, that surplus pages
come and go, and that holes, truncation and mappings meet. The pools are shown after every line.

Happy path: `random_huge_script(seed, index)` gives the text.
"""

from __future__ import annotations

from random import Random
from typing import Final

from kernelmodel.sim.rng import stream

__all__ = ["random_huge_script"]

_POOL: Final = 32
_MACHINES: Final = (
    ("#! memory=1G hugepagesz=2M hugepages=32", ("2M",)),
    ("#! memory=1G hugepagesz=2M hugepages=32", ("2M",)),
    ("#! memory=6G hugepagesz=1G hugepages=3 hugepagesz=2M hugepages=32", ("1G", "2M", "2M")),
    ("#! memory=4G hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=20", ("1G", "2M", "2M")),
    ("#! memory=6G default_hugepagesz=1G hugepages=2 hugepagesz=2M hugepages=5", ("1G", "2M")),
    ("#! memory=2G hugepages=64", ("2M",)),
    ("#! memory=1G", ("2M",)),
    ("#! memory=2G nodes=2 hugepagesz=2M hugepages=0:4,1:3", ("2M",)),
)
_LENGTHS: Final = {"2M": (0, 1, 1, 2, 2, 3, 5, 8, 10, 20, 33, 40), "1G": (0, 1, 1, 2, 3, 5)}
_POOLS: Final = {"2M": (0, 1, 5, 10, 20, _POOL, 40, 50, 64), "1G": (0, 1, 2, 3)}
_OVERCOMMIT: Final = {"2M": (0, 1, 2, 8, 20), "1G": (0, 0, 0, 1)}
#: Bytes that make a length no multiple, mostly none.
_ODD: Final = ("",) * 9 + (" 1", " 4096")
_WEIGHTS: Final = {
    "pool": 6, "overcommit": 6, "hmem": 12, "map": 16, "pmap": 10, "touch": 20, "unmap": 8,
    "fallocate": 12, "truncate": 8, "close": 6,
}  # fmt: skip


def random_huge_script(seed: int, index: int) -> str:
    """Script `index` of a seed; the same text for ever, on every machine."""
    return _Writer(stream(seed, "huge script", index)).write()


class _Writer:
    """Writes one script. An operation returns its line and the page size to show."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.pick = random.choice
        self.header: str
        self.sizes: tuple[str, ...]
        self.header, self.sizes = self.pick(_MACHINES)
        self.count = 0
        #: Names with their page size, mappings with their length too; failed ones are among them.
        self.files: list[tuple[str, str]] = [("missing", self.sizes[0])]
        self.maps: list[tuple[str, str, int]] = [("missing", self.sizes[0], 1)]

    def write(self) -> str:
        lines = [self.header]
        for _ in range(self.random.randrange(15, 60)):
            self.count += 1
            op = self.random.choices(tuple(_WEIGHTS), tuple(_WEIGHTS.values()))[0]
            line, size = getattr(self, f"op_{op}")()
            lines += [line, f"hstat {size}"]
        return "\n".join(lines) + "\n"

    def flag(self) -> str:
        return self.pick(("", "", " n"))

    def file(self) -> tuple[str, str]:
        return self.pick(self.files[-5:])

    def op_pool(self) -> tuple[str, str]:
        size = self.pick(self.sizes)
        return f"pool {size} {self.pick(_POOLS[size])}", size

    def op_overcommit(self) -> tuple[str, str]:
        size = self.pick(self.sizes)
        return f"overcommit {size} {self.pick(_OVERCOMMIT[size])}", size

    def op_hmem(self) -> tuple[str, str]:
        size, file = self.pick(self.sizes), f"f{self.count}"
        self.files.append((file, size))
        return f"hmem {file} {size} {self.pick(_LENGTHS[size])}{self.pick(_ODD)}", size

    def op_map(self) -> tuple[str, str]:
        (file, size), mapping = self.file(), f"m{self.count}"
        length = max(1, self.pick(_LENGTHS[size]))
        self.maps.append((mapping, size, length))
        return f"map {mapping} {file} {self.pick((0, 0, 1, 2, 5))} {length}{self.flag()}", size

    def op_pmap(self) -> tuple[str, str]:
        size, mapping = self.pick(self.sizes), f"p{self.count}"
        length = max(1, self.pick(_LENGTHS[size]))
        self.maps.append((mapping, size, length))
        return f"pmap {mapping} {size} {length}{self.flag()}", size

    def op_touch(self) -> tuple[str, str]:
        mapping, size, nr_pages = self.pick(self.maps[-6:])
        page = self.random.randrange(nr_pages)
        return f"touch {mapping} {page} {self.random.randrange(1, nr_pages - page + 1)}", size

    def op_unmap(self) -> tuple[str, str]:
        mapping, size, _ = self.pick(self.maps[-6:])
        return f"unmap {mapping}", size

    def op_fallocate(self) -> tuple[str, str]:
        file, size = self.file()
        mode, offset = self.pick((0, 0, 1, 3, 3, 2)), self.pick((0, 0, 1, 2, 5))
        return f"fallocate {file} {mode} {offset} {self.pick(_LENGTHS[size])}", size

    def op_truncate(self) -> tuple[str, str]:
        file, size = self.file()
        return f"truncate {file} {self.pick(_LENGTHS[size])}{self.pick(_ODD)}", size

    def op_close(self) -> tuple[str, str]:
        file, size = self.file()
        return f"close {file}", size
