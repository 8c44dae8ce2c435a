"""The 64-bit content hash of traces and images: FNV-1a's form with an offset basis of its own.

FNV-1a takes byte after byte, h = (h ^ b) * p, which is slow here. What a byte does to h depends on
h's lowest byte alone: h ^ b = h + d with d = (l ^ b) - l. And bit k of the lowest byte depends on
its lower bits and a running exclusive-or. So the lowest bytes of all steps are found bit by bit,
each as a prefix sum over GF(2), and the rest is one polynomial in p, modulo 2^64.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["FNV_BASIS", "fnv1a", "fnv1a_zeroes"]

FNV_BASIS: Final = 1469598103934665603
_PRIME: Final = 1099511628211
_MASK: Final = (1 << 64) - 1
_CHUNK: Final = 1 << 16
#: Below this many bytes the plain loop is faster.
_FEW: Final = 512


def fnv1a_zeroes(digest: int, nr_bytes: int) -> int:
    """The hash `digest` carried on over zero bytes."""
    return digest * pow(_PRIME, nr_bytes, 1 << 64) & _MASK


def fnv1a(digest: int, data: bytes | bytearray | memoryview) -> int:
    """The hash `digest` carried on over `data`."""
    for at in range(0, len(data), _CHUNK):
        digest = _chunk(digest, data[at : at + _CHUNK])
    return digest


def _chunk(digest: int, data: bytes | bytearray | memoryview) -> int:
    if len(data) < _FEW:
        for byte in data:
            digest = (digest ^ byte) * _PRIME & _MASK
        return digest
    octets = np.frombuffer(data, dtype=np.uint8)
    if not octets.any():
        return fnv1a_zeroes(digest, len(octets))
    low = _low_bytes(digest & 0xFF, octets)
    steps = ((low ^ octets).astype(np.int64) - low).astype(np.uint64)
    powers = _powers()[-len(octets) :]
    total = int(np.multiply(steps, powers).sum(dtype=np.uint64))
    return (digest * pow(_PRIME, len(octets), 1 << 64) + total) & _MASK


def _low_bytes(start: int, octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The lowest byte of the hash before each of `octets` is taken in."""
    low = np.zeros(len(octets) + 1, dtype=np.uint8)
    low[0] = start
    factor = np.uint8(_PRIME & 0xFF)
    for bit in range(8):
        known = np.uint8((1 << bit) - 1)
        # the product's bit without the one that is not known yet, which goes into it as it is
        steps = ((low[:-1] ^ octets) & known) * factor ^ octets
        sums = _prefix_sums(steps & np.uint8(1 << bit), start >> bit & 1)
        low[1:] |= sums << np.uint8(bit)
    return low[:-1]


def _prefix_sums(flags: NDArray[np.uint8], start: int) -> NDArray[np.uint8]:
    """For each element, `start` plus the elements up to it that are not 0, modulo 2."""
    packed = np.packbits(flags, bitorder="little")
    words = np.zeros(-(-len(packed) // 8), dtype="<u8")
    words.view(np.uint8)[: len(packed)] = packed
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words << np.uint64(shift)
    before = np.bitwise_xor.accumulate(words >> np.uint64(63))
    before = np.concatenate(([start], before[:-1] ^ np.uint64(start))).astype(np.uint64)
    words ^= np.uint64(0) - before
    return np.unpackbits(words.view(np.uint8), count=len(flags), bitorder="little")


@cache
def _powers() -> NDArray[np.uint64]:
    """p^CHUNK, …, p^2, p."""
    powers = np.empty(_CHUNK, dtype=np.uint64)
    value = 1
    for at in range(_CHUNK - 1, -1, -1):
        value = value * _PRIME & _MASK
        powers[at] = value
    return powers
