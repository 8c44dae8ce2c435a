"""What is wrong with the files that a user wrote, all of it at once.

A reader never stops at the first mistake: it notes an `InputFault` and goes on with
whatever still makes sense, and `BadInput` carries the lot to the command line, which prints
one `FILE:LINE: what, and what would be right` each and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from msgspec import Struct

__all__ = ["BadInput", "Faults", "InputFault", "did_you_mean"]


class InputFault(Struct, frozen=True, order=True):
    """One mistake and its place.

    `file` is a path as the user would type it, or `--set a.b` for an override. `line`
    counts from 1; in a Parquet file it is the row. 0 means the file as a whole.
    """

    file: str
    line: int
    what: str
    right: str = ""  # what would be right, "" if `what` says it all

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.what}, {self.right}" if self.right else f"{place}: {self.what}"


class BadInput(Exception):
    """The input cannot be used; `faults` says why, every one of them."""

    def __init__(self, faults: Iterable[InputFault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))

    def __reduce__(self) -> tuple[type[BadInput], tuple[tuple[InputFault, ...]]]:
        return type(self), (self.faults,)


class Faults:
    """Collects mistakes while reading goes on; the same one is kept once."""

    def __init__(self) -> None:
        self._found: dict[InputFault, None] = {}

    def add(self, place: tuple[str, int], what: str, right: str = "") -> None:
        """Note a mistake at `place`, which is a file and a line."""
        self._found[InputFault(*place, what, right)] = None

    def __len__(self) -> int:
        return len(self._found)

    def raise_if_any(self) -> None:
        """Raise `BadInput` with everything found so far, in the order of files and lines."""
        if self._found:
            order = {file: nr for nr, file in enumerate(dict.fromkeys(f.file for f in self._found))}
            raise BadInput(sorted(self._found, key=lambda f: (order[f.file], f.line)))


def did_you_mean(given: str, known: Iterable[str], *, noun: str = "") -> str:
    """'did you mean "rack"?' or, if nothing is close, the list of what is known."""
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    if not names:
        return f"there is no {noun or 'other'} at all"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"known {noun}: {shown}" if noun else f"known: {shown}"
