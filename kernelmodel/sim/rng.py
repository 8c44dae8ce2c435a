"""Named random streams: every consumer of chance has its own, hashed from the run's seed.

What it models: nothing of the kernel. A stream is a function of the seed and of its path alone,
so a new consumer, another order of calls or another number of processes shifts nobody's luck::

    stream(7, "host", "r2-h03", "content").randrange(4096)

Two ways to draw:

* `stream()` gives a `random.Random`. Model code draws integers only (`randrange`,
  `getrandbits`): floats would make results depend on how they are rounded.
* `draw()` gives the one integer that belongs to a path and an index, without any state. The
  clock uses it: the luck of one VM does not depend on how many other VMs the host has.

The bytes hashed are a type tag, a length and the value for each element of the path, so that
`("a", "b")`, `("ab",)` and `("a", 1)` against `("a", "1")` are different streams.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from random import Random

__all__ = ["draw", "stream", "stream_key"]


def stream(seed: int, *path: str | int) -> Random:
    """The random stream called `path` in the run with this seed."""
    return Random(int.from_bytes(stream_key(seed, *path), "big"))


def stream_key(seed: int, *path: str | int) -> bytes:
    """32 bytes that identify a stream; also a key for `draw`."""
    hasher = blake2b(digest_size=32, person=b"lufleet rng")
    for element in (seed, *path):
        if isinstance(element, str):
            tag, value = b"s", element.encode()
        else:
            tag, value = b"i", b"%d" % element
        hasher.update(tag + len(value).to_bytes(4, "big") + value)
    return hasher.digest()


def draw(key: bytes, name: str, index: int, bound: int) -> int:
    """The integer in [0, bound) that belongs to (key, name, index).

    Reduced from 64 bits by multiplication: a bias of at most bound / 2**64.
    """
    hasher = _keyed(key)()
    hasher.update(f"{index} {name}".encode())
    return int.from_bytes(hasher.digest(), "big") * bound >> 64


@lru_cache(maxsize=1024)
def _keyed(key: bytes) -> Callable[[], blake2b]:
    """Makes a hash with this key, by copying: faster than another one with a key."""
    return blake2b(digest_size=8, key=key).copy
