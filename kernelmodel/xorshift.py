"""The stream of words that `fill` writes in scripts: xorshift64, many words at once.

A step is linear over GF(2), so k steps are one 64 × 64 matrix. With the first k words and the
matrix of k steps the next k come all at once; matrices are held as what they make of each byte.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["xorshift"]

_MASK: Final = (1 << 64) - 1
_FACTOR: Final = 2654435761
_START: Final = 88172645463325252
#: A word's bytes, and the values of a byte.
_BYTES: Final = 8
_VALUES: Final = 256
#: Words that are made one by one.
_FEW: Final = 64


@lru_cache(maxsize=256)
def xorshift(seed: int, length: int) -> bytes:
    """The first `length` bytes of a seed's stream, words in little-endian order."""
    state = (seed * _FACTOR + _START) & _MASK
    first = []
    for _ in range(_FEW):
        state = _step(state)
        first.append(state)
    words = np.array(first, dtype="<u8")
    exponent = _FEW.bit_length() - 1
    while words.nbytes < length:
        words = np.concatenate((words, _apply(_steps(exponent), words)))
        exponent += 1
    return words.tobytes()[:length]


def _step(x: int) -> int:
    x ^= x << 13 & _MASK
    x ^= x >> 7
    x ^= x << 17 & _MASK
    return x


def _apply(matrix: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    octets = words.view(np.uint8).reshape(-1, _BYTES)
    out: NDArray[np.uint64] = matrix[0][octets[:, 0]]
    for byte in range(1, _BYTES):
        out ^= matrix[byte][octets[:, byte]]
    return out


@cache
def _steps(exponent: int) -> NDArray[np.uint64]:
    """2^exponent steps: row b column v is what they make of the word with v as its byte b."""
    if exponent:
        half = _steps(exponent - 1)
        return _apply(half, half.reshape(-1)).reshape(_BYTES, _VALUES)
    return np.array(
        [[_step(value << 8 * byte) for value in range(_VALUES)] for byte in range(_BYTES)],
        dtype="<u8",
    )
