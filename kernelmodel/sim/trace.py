r"""Traces: what happened, in a canonical binary form, and the digest of it.

A `Trace` is one stream of events (one host's, or the coordinator's). Every event is encoded
canonically and folded into a rolling hash, so a stream's digest is known without keeping its
events. A run's digest combines the digests of its streams by name. Host streams are called
``host/NAME``, the coordinator's ``fleet``.

Record, version 1 (integers big-endian)::

    u8 version = 1 | u64 now_ns | u16 length, event name | u16 number of fields
    per field, sorted by name:  u16 length, name | tag | u32 length, value
    tag 'i' integer, two's complement, shortest whole bytes;  's' UTF-8;  'b' bytes;
        't' boolean, one byte

Chain: ``state = blake2b(state + record, digest_size=32)``, starting from 32 zero bytes.
Run: ``blake2b(for each stream by name: u16 length, name, 32-byte state; digest_size=32)``; streams
that never emitted anything are left out, for a file does not show them either.

File: the magic ``LUFTRC1\n``, then frames ``u16 length, stream name | u32 length, record``. Frames
of one stream stand in its order; streams may be mixed in any way.

Unhappy paths: a field of another type and a time below 0 are `ModelBug`; a file that is cut short
or of another version is `TraceFormatError`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from kernelmodel.errors import ModelBug

__all__ = [
    "MAGIC",
    "Event",
    "Trace",
    "TraceFile",
    "TraceFormatError",
    "Value",
    "decode",
    "run_digest",
]

Value = int | str | bytes | bool

MAGIC: Final = b"LUFTRC1\n"
_VERSION: Final = 1
_SIZE: Final = 32
_START: Final = bytes(_SIZE)
#: A hash that has been given nothing: a copy of it is made faster than another one.
_hasher: Final = blake2b(digest_size=_SIZE).copy
_HEAD: Final = Struct(">BQ")
_LINK: Final = Struct(f">{_SIZE}sBQ")  # of the chain: state, head
_U16: Final = Struct(">H")
_U32: Final = Struct(">I")


class TraceFormatError(ValueError):
    """Bytes that are no trace, or not one of this version."""


@dataclass(frozen=True, slots=True)
class Event:
    """One decoded record."""

    now_ns: int
    name: str
    fields: Mapping[str, Value]


class Trace:
    """One stream of events and its rolling digest. With `record`, the events are kept too."""

    __slots__ = ("_kept", "_state", "stream")

    def __init__(self, stream: str, record: bool = False) -> None:
        self.stream = stream
        self._state = _START
        self._kept: list[bytes] | None = [] if record else None

    def emit(self, now_ns: int, event: str, /, **fields: Value) -> None:
        """`append`, with the fields as keywords."""
        self.append(now_ns, event, fields)

    def append(self, now_ns: int, event: str, fields: Mapping[str, Value]) -> None:
        """Append an event to the stream."""
        try:
            heading, columns = _SHAPES[event, len(fields)]
            parts = [_LINK.pack(self._state, _VERSION, now_ns), heading]
            for name, writers in columns:
                value = fields[name]
                parts.append(writers[type(value)](value))
        except KeyError:
            _learn(event, fields)
            self.append(now_ns, event, fields)
            return
        except struct.error:
            raise ModelBug(f"event {event!r} at {now_ns} ns") from None
        link = b"".join(parts)
        hasher = _hasher()
        hasher.update(link)
        self._state = hasher.digest()
        if self._kept is not None:
            record = link[_SIZE:]
            self._kept += (_U32.pack(len(record)), record)

    def hexdigest(self) -> str:
        """The stream's digest so far, 64 hexadecimal digits."""
        return self._state.hex()

    def take_events(self) -> bytes:
        """The records since the last call, each behind a u32 length; empty unless recording."""
        if not self._kept:
            return b""
        taken = b"".join(self._kept)
        self._kept.clear()
        return taken


def run_digest(streams: Mapping[str, str]) -> str:
    """The digest of a run from its streams' digests (hexadecimal)."""
    hasher = blake2b(digest_size=_SIZE)
    for name in sorted(streams):
        state = bytes.fromhex(streams[name])
        if state != _START:
            hasher.update(_short(name) + state)
    return hasher.hexdigest()


def decode(records: bytes) -> Iterator[Event]:
    """Events of what `Trace.take_events` returned."""
    for record in _split(records):
        yield _decode(record)


class TraceFile:
    """A trace file being written; a context manager. `TraceFile.read` reads one."""

    def __init__(self, path: Path | str) -> None:
        self._file: BinaryIO = Path(path).open("wb")  # noqa: SIM115 - closed by close()
        self._file.write(MAGIC)

    def write(self, stream: str, records: bytes) -> None:
        """Append records of `stream`, as `Trace.take_events` returns them."""
        name = _short(stream)
        self._file.writelines(
            part for r in _split(records) for part in (name, _U32.pack(len(r)), r)
        )

    def close(self) -> None:
        """Flush and close; further calls do nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def read(path: Path | str) -> Iterator[tuple[str, Event]]:
        """(stream, event) of every frame, in the order of the file."""
        with Path(path).open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise TraceFormatError(f"{path}: no {MAGIC!r} at the start")
            while length := file.read(_U16.size):
                name = _exactly(file, _U16.unpack(_whole(length, _U16.size))[0])
                size = _U32.unpack(_exactly(file, _U32.size))[0]
                yield name.decode(), _decode(_exactly(file, size))


def _text(value: str) -> bytes:
    data = value.encode()
    return b"s" + _U32.pack(len(data)) + data


def _flag(value: bool) -> bytes:
    return b"t\0\0\0\1\1" if value else b"t\0\0\0\1\0"


def _number(value: int) -> bytes:
    number = int(value)  # so that an IntEnum is written like its number
    size = number.bit_length() // 8 + 1
    return b"i" + _U32.pack(size) + number.to_bytes(size, "big", signed=True)


def _data(value: bytes) -> bytes:
    return b"b" + _U32.pack(len(value)) + value


_ENCODERS: Final[tuple[tuple[type, Callable[[Any], bytes]], ...]] = (
    (str, _text),
    (bool, _flag),
    (int, _number),
    (bytes, _data),
)


_Writer = Callable[[Any], bytes]
#: By an event's name and number of fields, as there were last: what such records share, and the
#: fields in order, each with what writes its values, by type.
_SHAPES: Final[dict[tuple[str, int], tuple[bytes, list[tuple[str, dict[type, _Writer]]]]]] = {}


def _learn(event: str, fields: Mapping[str, Value]) -> None:
    """Find out how an event is written whose fields or types are not those of the last."""
    shape = (event, len(fields))
    names = sorted(fields)
    if shape not in _SHAPES or [name for name, _ in _SHAPES[shape][1]] != names:
        heading = _short(event) + _U16.pack(len(fields))
        _SHAPES[shape] = heading, [(name, {}) for name in names]
    for name, writers in _SHAPES[shape][1]:
        value = fields[name]
        for base, encode in _ENCODERS:
            if isinstance(value, base):
                writers[type(value)] = _writer(_short(name), encode)
                break
        else:
            message = f"field {name!r} is {value!r}, not int, str, bytes or bool"
            raise ModelBug(f"event {event!r}: {message}")


def _writer(short: bytes, encode: _Writer) -> _Writer:
    """Writes a field; fields of one name and type often have few values."""

    @lru_cache(maxsize=256)
    def write(value: Value) -> bytes:
        return short + encode(value)

    return write


@lru_cache(maxsize=4096)
def _short(text: str) -> bytes:
    data = text.encode()
    return _U16.pack(len(data)) + data


def _decode(record: bytes) -> Event:
    try:
        version, now_ns = _HEAD.unpack_from(record)
        if version != _VERSION:
            raise TraceFormatError(f"record of version {version}, not {_VERSION}")
        name, at = _take_short(record, _HEAD.size)
        (count,) = _U16.unpack_from(record, at)
        at += _U16.size
        fields: dict[str, Value] = {}
        for _ in range(count):
            field, at = _take_short(record, at)
            tag = record[at : at + 1]
            (size,) = _U32.unpack_from(record, at + 1)
            at += 1 + _U32.size
            fields[field] = _value(tag, _whole(record[at : at + size], size))
            at += size
    except (struct.error, UnicodeDecodeError) as error:
        raise TraceFormatError(f"broken record: {error}") from None
    if at != len(record):
        raise TraceFormatError(f"{len(record) - at} bytes behind a record's last field")
    return Event(now_ns, name, fields)


def _value(tag: bytes, data: bytes) -> Value:
    match tag:
        case b"i":
            return int.from_bytes(data, "big", signed=True)
        case b"s":
            return data.decode()
        case b"b":
            return data
        case b"t":
            return data != b"\0"
        case _:
            raise TraceFormatError(f"unknown tag {tag!r}")


def _split(records: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(records):
        size = _U32.unpack(_whole(records[at : at + _U32.size], _U32.size))[0]
        at += _U32.size
        yield _whole(records[at : at + size], size)
        at += size


def _take_short(record: bytes, at: int) -> tuple[str, int]:
    (size,) = _U16.unpack_from(record, at)
    at += _U16.size
    return _whole(record[at : at + size], size).decode(), at + size


def _exactly(file: BinaryIO, size: int) -> bytes:
    return _whole(file.read(size), size)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise TraceFormatError(f"{size} bytes expected, {len(data)} left")
    return data
