"""Changes made to a handover by chance, one for each seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from kernelmodel.corruptions.catalogue import CORRUPTIONS
from kernelmodel.corruptions.handed_over import NotThere
from kernelmodel.corruptions.reader import Write
from kernelmodel.machine import Firmware
from kernelmodel.memory import GIB, MIB, PAGE_SHIFT, PAGE_SIZE, PhysicalMemory

if TYPE_CHECKING:
    from tests.sim.spoilt_handovers import Sound

#: Values that are at some border: counts, sizes, seals, addresses.
BORDERS = (
    *(0, 1, 2, 3, 50, 51, 52, 62, 63, 64, 255, 256, 257, 511, 512, 513, 4095, 4096, 4097),
    *(0xA0000, MIB, 128 * MIB - 8, 128 * MIB - 4096, 128 * MIB, GIB, 4 * GIB),
    *(1 << bit for bit in (31, 32, 40, 47, 51, 52, 53, 62, 63)),
    *((1 << bit) - 1 for bit in (12, 31, 32, 47, 52, 63, 64)),
)


class Spoiler:
    """One change: `rng` decides which; `frames` are those that the handover consists of."""

    def __init__(
        self, rng: random.Random, sound: Sound, memory: PhysicalMemory, firmware: Firmware
    ) -> None:
        self.rng = rng
        self.memory = memory
        self.firmware = firmware
        #: As it was: one that earlier changes spoilt could lead anywhere.
        self.handed_over = sound.handed_over
        self.metadata = sound.metadata
        self.content = sound.content

    def frame(self) -> int:
        """Mostly one of metadata, sometimes of a file's content, seldom any."""
        kind = self.rng.randrange(16)
        if kind < 14 or not self.content:
            return self.rng.choice(self.metadata)
        return self.rng.choice(self.content) if kind == 14 else self.rng.randrange(256, 32768)

    def word_at(self) -> int:
        """The address of a word, mostly of one in use."""
        pfn = self.frame()
        page = self.memory.page(pfn)
        used = [at for at in range(0, PAGE_SIZE, 8) if page[at : at + 8] != bytes(8)]
        if used and self.rng.random() < 0.9:
            at = self.rng.choice(used)
            if self.rng.random() < 0.2:
                at = min(at + 8, PAGE_SIZE - 8)
        else:
            at = 8 * self.rng.randrange(PAGE_SIZE // 8)
        return (pfn << PAGE_SHIFT) + at

    def value(self, old: int) -> int:
        """What a word could hold to do harm."""
        rng = self.rng
        kind = rng.randrange(8)
        if kind == 0:
            return rng.choice(BORDERS)
        if kind == 1:
            return old + rng.choice((-4096, -8, -1, 1, 8, 4096)) & (1 << 64) - 1
        if kind == 2:
            return rng.randrange(0, 128 * MIB)
        if kind == 3:
            return rng.getrandbits(rng.choice((8, 16, 27, 32, 52, 64)))
        if kind == 4:
            return old & ~0xFFFFFFFF | rng.choice(BORDERS) & 0xFFFFFFFF
        if kind == 5:
            return old >> 52 << 52 | rng.choice((*self.metadata, *self.content))
        return rng.choice((*self.metadata, *self.content)) << PAGE_SHIFT  # a loop, a page of two

    # The changes.

    def flip_bit(self) -> None:
        pa = self.word_at() + self.rng.randrange(8)
        self.memory.write(pa, bytes([self.memory.read(pa, 1)[0] ^ 1 << self.rng.randrange(8)]))

    def other_word(self) -> None:
        pa = self.word_at()
        self.memory.write_u64(pa, self.value(self.memory.u64(pa)))

    def other_u32(self) -> None:
        pa = self.word_at() + self.rng.choice((0, 4))
        order = self.rng.choice(("<I", ">I"))  # an FDT is big-endian
        self.memory.write(pa, struct.pack(order, self.rng.choice(BORDERS) & 0xFFFFFFFF))

    def missing_page(self) -> None:
        self.memory.zero(self.frame(), 1)

    def exchanged_pages(self) -> None:
        one, other = self.frame(), self.frame()
        pages = bytes(self.memory.page(one)), bytes(self.memory.page(other))
        self.memory.write(one << PAGE_SHIFT, pages[1])
        self.memory.write(other << PAGE_SHIFT, pages[0])

    def copied_page(self) -> None:
        source = bytes(self.memory.page(self.frame()))
        self.memory.write(self.frame() << PAGE_SHIFT, source)

    def page_of_one_kind(self) -> None:
        rng = self.rng
        pages = (
            b"\xff" * PAGE_SIZE,
            rng.randbytes(PAGE_SIZE),
            struct.pack("<Q", rng.choice(self.metadata) << PAGE_SHIFT) * 512,
            struct.pack("<512Q", *(rng.choice(self.metadata) << PAGE_SHIFT for _ in range(512))),
            b"\x55" * PAGE_SIZE,
        )
        self.memory.write(self.frame() << PAGE_SHIFT, rng.choice(pages))

    def key(self) -> None:
        rng = self.rng
        order = rng.choice((0, 0, 0, 0, 1, 1, 2, 3, 5, 8, 9, 9, 10, 11, 14, 18, 30, 51))
        pfn = rng.choice((self.frame(), rng.randrange(40000))) >> order << order
        self._write(self.handed_over.put_key(pfn, order, present=rng.random() < 0.7))

    def firmware_data(self) -> None:
        rng = self.rng
        which = rng.choice(("fdt", "scratch"))
        given = self.firmware.fdt if which == "fdt" else self.firmware.scratch
        assert given is not None, "a handover has both"
        pa, size = given
        if rng.random() < 0.5:
            pa = rng.choice((pa + 8, pa + PAGE_SIZE, rng.choice(BORDERS), self.frame() << 12))
        else:
            size = rng.choice((0, 1, 15, 16, 17, 32, size + 16, 4096, rng.choice(BORDERS)))
        if which == "fdt":
            self.firmware = replace(self.firmware, fdt=(pa, size))
        else:
            self.firmware = replace(self.firmware, scratch=(pa, size))

    def of_the_catalogue(self) -> None:
        corruption = self.rng.choice(list(CORRUPTIONS.values()))
        try:
            self._write(corruption.writes(self.handed_over))
        except NotThere:
            return
        if corruption.firmware is not None:
            self.firmware = corruption.firmware(self.firmware)

    def _write(self, writes: list[Write]) -> None:
        for pa, data in writes:
            self.memory.write(pa, data)


_CHANGES: tuple[Callable[[Spoiler], None], ...] = (
    *[Spoiler.other_word] * 8,
    *[Spoiler.flip_bit] * 4,
    *[Spoiler.key] * 3,
    *[Spoiler.of_the_catalogue] * 3,
    *[Spoiler.other_u32] * 2,
    Spoiler.missing_page,
    Spoiler.exchanged_pages,
    Spoiler.copied_page,
    Spoiler.page_of_one_kind,
    Spoiler.firmware_data,
)


def spoil(rng: random.Random, sound: Sound, memory: PhysicalMemory, firmware: Firmware) -> Firmware:
    """Make one change in memory; firmware data as they are then."""
    spoiler = Spoiler(rng, sound, memory, firmware)
    rng.choice(_CHANGES)(spoiler)
    return spoiler.firmware
