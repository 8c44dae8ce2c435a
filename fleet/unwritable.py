"""Files that cannot be written: the disk is full or forbids it, and the simulator is not wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

__all__ = [
    "STANDARD_OUTPUT",
    "CannotWrite",
    "drop_the_rest",
    "errno_told",
    "make_directory",
    "printing",
    "writing",
]

#: What stands for the name of a file where it is a log or a pipe that takes no more.
STANDARD_OUTPUT: Final = Path("standard output")

#: A disk, a share of it, or a file's size that has come to its end.
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: What DuckDB says in words only.
_TOLD: Final = (*_NO_ROOM, errno.EACCES, errno.EROFS)

_ADVICE: Final = dict.fromkeys(_NO_ROOM, "make room there, or choose another place") | {
    errno.EEXIST: "something else is there; choose another name",
    errno.ENOTDIR: "something on the way there is no directory; choose another place",
    errno.EISDIR: "choose the name of a file",
}


class CannotWrite(Exception):
    """A file or directory that cannot be written, why, and what to do about it."""

    def __init__(self, path: Path, why: str, number: int | None = None) -> None:
        self.path = path
        advice = _ADVICE.get(number or 0, "choose a place that can be written to")
        super().__init__(f"cannot write {path}: {why}; {advice}")


def errno_told(error: Exception) -> int | None:
    """The errno whose words are in a message, of those of a place that cannot be written to."""
    return next((number for number in _TOLD if os.strerror(number) in str(error)), None)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is done inside writes `path`.

    Raises:
        CannotWrite: it cannot.
    """
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise CannotWrite(path, why, error.errno) from error


def make_directory(path: Path) -> None:
    """Make a directory for results, and those above it, if need be.

    Raises:
        CannotWrite: it cannot be made, or DuckDB could not write there.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CannotWrite(path, "its name is not UTF-8") from None
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """What is done inside may print what somebody else's code writes.

    Raises:
        CannotWrite: standard output has no room for it.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _NO_ROOM:
            raise
        drop_the_rest(sys.stdout)
        raise CannotWrite(STANDARD_OUTPUT, os.strerror(error.errno), error.errno) from None


def drop_the_rest(file: IO[str]) -> None:
    """What is still buffered is written at the exit, and would fail once more there."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)
