"""The stream that `fill` writes, against the plain recurrence."""

from __future__ import annotations

import pytest

from kernelmodel.xorshift import xorshift

MASK = (1 << 64) - 1


def plainly(seed: int, length: int) -> bytes:
    x = (seed * 2654435761 + 88172645463325252) & MASK
    out = bytearray()
    while len(out) < length:
        x ^= (x << 13) & MASK
        x ^= x >> 7
        x ^= (x << 17) & MASK
        out += x.to_bytes(8, "little")
    return bytes(out[:length])


@pytest.mark.parametrize("seed", [0, 1, 99, 2**40 + 7, 2**64 - 1])
@pytest.mark.parametrize("length", [0, 1, 8, 100, 511, 512, 513, 4096, 70001])
def test_many_words_at_once_are_those_of_one_after_the_other(seed: int, length: int) -> None:
    assert xorshift(seed, length) == plainly(seed, length)
