"""File trees for a kernel's first process, as `newc` cpio archives: what an initrd holds.

Happy path: `archive` of names and contents gives the bytes; directories come by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["archive"]

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"
_DIRECTORY: Final = 0o040755
_PROGRAM: Final = 0o100755


def archive(files: Mapping[str, bytes], directories: tuple[str, ...] = ()) -> bytes:
    """A cpio archive of programs and data files, in the order given, after its directories.

    Args:
        files: contents by path; paths are relative to the root. Every file may be executed.
        directories: further directories, parents first.
    """
    entries = [_entry(number, path, _DIRECTORY) for number, path in enumerate(directories, 1)]
    entries += [
        _entry(number, path, _PROGRAM, content)
        for number, (path, content) in enumerate(files.items(), len(directories) + 1)
    ]
    return b"".join([*entries, _entry(0, _TRAILER, 0)])


def _entry(ino: int, path: str, mode: int, content: bytes = b"") -> bytes:
    name = path.encode() + b"\0"
    fields = (ino, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
