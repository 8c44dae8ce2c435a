"""What is wrong with the files that a user wrote, all of it at once.

A reader never stops at the first mistake: it notes an `InputFault` and goes on with
whatever still makes sense, and `BadInput` carries the lot to the command line, which prints
one `FILE:LINE: what, and what would be right` each and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from msgspec import Struct

__all__ = ["ALIKE_SHOWN", "BadInput", "Faults", "InputFault", "Place", "did_you_mean", "place_text"]


#: Where something stands: a file and a line.
Place = tuple[str, int]


def place_text(place: Place) -> str:
    """FILE:LINE, or what has no lines as it is."""
    file, line = place
    return f"{file}:{line}" if line else file


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
        place = place_text((self.file, self.line))
        return f"{place}: {self.what}, {self.right}" if self.right else f"{place}: {self.what}"


class BadInput(Exception):
    """The input cannot be used; `faults` says why, every one of them."""

    def __init__(self, faults: Iterable[InputFault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))

    def __reduce__(self) -> tuple[type[BadInput], tuple[tuple[InputFault, ...]]]:
        return type(self), (self.faults,)


#: A column that is wrong in every row of a long table is not worth a hundred thousand lines.
ALIKE_SHOWN = 20


class Faults:
    """Collects mistakes while reading goes on; the same one is kept once."""

    def __init__(self) -> None:
        self._found: dict[InputFault, None] = {}
        self._alike: dict[str, int] = {}
        self._first_left_out: dict[str, Place] = {}

    def add(self, place: Place, what: str, right: str = "", *, alike: str = "") -> None:
        """Note a mistake at `place`.

        Of those that share the same `alike` only the first ALIKE_SHOWN are kept, and how many
        more there were.
        """
        if alike:
            self._alike[alike] = self._alike.get(alike, 0) + 1
            if self._alike[alike] > ALIKE_SHOWN:
                self._first_left_out.setdefault(alike, place)
                return
        self._found[InputFault(*place, what, right)] = None

    def __len__(self) -> int:
        return len(self._found)

    def all(self) -> tuple[InputFault, ...]:
        """Every mistake, in the order of files and lines."""
        found = list(self._found)
        for alike, place in self._first_left_out.items():
            more = self._alike[alike] - ALIKE_SHOWN
            found.append(InputFault(*place, f"{alike}: {more} more like those above, from here on"))
        files = list(dict.fromkeys(fault.file for fault in found))
        return tuple(sorted(found, key=lambda fault: (files.index(fault.file), fault.line)))

    def raise_if_any(self) -> None:
        """Raise `BadInput` with everything found so far."""
        if self._found:
            raise BadInput(self.all())


def did_you_mean(given: str, known: Iterable[str], *, noun: str = "") -> str:
    """'did you mean "rack"?' or, if nothing is close, the list of what is known."""
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    if not names:
        return f"known {noun}: none" if noun else "known: none"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"known {noun}: {shown}" if noun else f"known: {shown}"
