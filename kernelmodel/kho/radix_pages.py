"""The pages of a radix tree of preserved memory, as they are read: tables, bitmaps and their keys.

Who hands a page over parses it, and so does who gets it; what comes of it depends on its bytes
alone, so the last few are kept.

C: include/linux/kho_radix_tree.h, 7.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np

from kernelmodel.abi.kexec_handover import KHO_BITMAP_SIZE_LOG2, KHO_ORDER_0_LOG2
from kernelmodel.errors import KernelPanic
from kernelmodel.kho.key_runs import KeyBatch, KeyRuns
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.mm.extents import FEW_RUNS, Extents
from kernelmodel.mm.frame_set import flag_runs

__all__ = ["BitRuns", "bit_runs", "decode_key", "leaf_runs", "table_entries"]

_BITMAP_BITS = 1 << KHO_BITMAP_SIZE_LOG2
_FULL_PAGE = b"\xff" * PAGE_SIZE
#: Above so many runs in one bitmap, unpacking all its bits at once is faster.
_FEW_RUNS = 48
_U64 = np.dtype("<u8")
#: Parsed pages that are kept.
_PAGES_KEPT = 64

#: Runs of set bits, ascending: as (first, last + 1), or, of many, first and number.
BitRuns = tuple[tuple[int, int], ...] | Extents


def decode_key(key: int) -> tuple[int, int]:
    """(pfn, order) of a key. C: kho_radix_decode_key().

    Raises:
        KernelPanic: its order bit stands above order 0. The kernel shifts by that order and walks
            off the end of its memory map.
    """
    top = key.bit_length() - 1
    order = KHO_ORDER_0_LOG2 - top
    if order < 0:
        raise KernelPanic(f"unable to handle page fault: radix key {key:#x} has no order")
    return (key & ~(1 << top)) << order, order


@lru_cache(maxsize=_PAGES_KEPT)
def table_entries(page: bytes) -> tuple[tuple[int, int], ...]:
    """The used slots of a table as (index, physical address)."""
    table = np.frombuffer(page, dtype=_U64)
    used = table.nonzero()[0]
    return tuple(zip(used.tolist(), table[used].tolist(), strict=True))


def leaf_runs(bits: BitRuns, prefix: int) -> list[KeyBatch]:
    """The keys of a bitmap with these bits set, whose first key is `prefix`."""
    if not prefix:
        return list(_first_leaf_runs(bits))
    if not bits:
        return []
    top = prefix.bit_length() - 1
    order = KHO_ORDER_0_LOG2 - top
    if order < 0:
        decode_key(prefix)  # faults
    base = (prefix ^ 1 << top) << order
    if isinstance(bits, Extents):
        if order == 0:
            return [KeyRuns(Extents(bits.pfns + base, bits.counts))]
        bits = tuple((at, at + nr) for at, nr in bits)
    return [(base + (first << order), order, last - first) for first, last in bits]


def _first_leaf_runs(bits: BitRuns) -> Iterator[tuple[int, int, int]]:
    """The keys of the first bitmap of all: they are of several orders."""
    for start, stop in [(a, a + n) for a, n in bits] if isinstance(bits, Extents) else bits:
        key = start or 1  # no order bit at all: no key that a kernel sets, and no address
        while key < stop:
            pfn, order = decode_key(key)
            # keys with one order bit more start where this order's keys end
            end = min(stop, 1 << key.bit_length())
            yield pfn, order, end - key
            key = end


@lru_cache(maxsize=_PAGES_KEPT)
def bit_runs(bitmap: bytes) -> BitRuns:
    """The runs of set bits of a bitmap."""
    if bitmap == _FULL_PAGE:
        return ((0, _BITMAP_BITS),)
    runs: list[tuple[int, int]] = []
    for low, high in _stretches(np.frombuffer(bitmap, dtype=_U64).nonzero()[0].tolist()):
        bits = int.from_bytes(bitmap[8 * low : 8 * high], "little")
        at = 64 * low
        while bits:
            if len(runs) == _FEW_RUNS:
                return _many_bit_runs(bitmap)
            skip = (bits & -bits).bit_length() - 1
            bits >>= skip
            at += skip
            ones = (~bits & (bits + 1)).bit_length() - 1
            runs.append((at, at + ones))
            bits >>= ones
            at += ones
    return tuple(runs)


def _stretches(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs (first, last + 1) of consecutive ones."""
    if not numbers or numbers[-1] - numbers[0] == len(numbers) - 1:
        return [(numbers[0], numbers[-1] + 1)] if numbers else []
    last = [low for low, high in pairwise(numbers) if high > low + 1]
    first = [high for low, high in pairwise(numbers) if high > low + 1]
    return [
        (low, high + 1)
        for low, high in zip([numbers[0], *first], [*last, numbers[-1]], strict=True)
    ]


def _many_bit_runs(bitmap: bytes) -> BitRuns:
    flags = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8), bitorder="little")
    firsts, lasts = flag_runs(flags.view(np.bool_))
    if len(firsts) > FEW_RUNS:
        return Extents(firsts, lasts - firsts)
    return tuple(zip(firsts.tolist(), lasts.tolist(), strict=True))
