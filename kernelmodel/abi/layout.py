"""Packed little-endian structures: one frozen class per C struct, `pack` and `unpack` from bytes.

A subclass names its fields in the order of the C struct and gives the `struct` format; the two
are checked against each other when the class is made.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, ClassVar, Self

__all__ = ["Ser", "cstring", "to_cstring"]


@dataclass(frozen=True, slots=True)
class Ser:
    """Base of everything that crosses kexec as bytes."""

    FORMAT: ClassVar[struct.Struct]
    SIZE: ClassVar[int]

    def pack(self) -> bytes:
        """The bytes that the kernel would write."""
        cls = type(self)
        if cls not in _fields_of:  # not astuple() for all, which copies every field deeply
            names = cls.field_names()
            _fields_of[cls] = attrgetter(*names) if len(names) > 1 else astuple
        return self.FORMAT.pack(*_fields_of[cls](self))

    @classmethod
    def unpack(cls, data: bytes | bytearray, offset: int = 0) -> Self:
        """Read the structure at `offset` of `data`, which must hold all of it."""
        return cls(*cls.FORMAT.unpack_from(data, offset))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The C struct's members."""
        return tuple(f.name for f in fields(cls))


#: What takes all fields out of a structure, by its class.
_fields_of: dict[type[Ser], Callable[[Any], tuple[Any, ...]]] = {}


def cstring(data: bytes) -> bytes:
    """`data` up to its first NUL; all of it if there is none."""
    return data.partition(b"\0")[0]


@lru_cache(maxsize=256)
def to_cstring(text: str, size: int) -> bytes:
    """`text` in a NUL-padded buffer of `size` bytes, NUL-terminated."""
    raw = text.encode()
    if len(raw) >= size:
        raise ValueError(f"{text!r} does not fit {size} bytes")
    return raw.ljust(size, b"\0")
