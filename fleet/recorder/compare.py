"""Model against kernel: where the two answer a script differently, and the least script that shows.

Happy path: `Comparison.of` a script and its recording has no `difference`.

Unhappy paths: whatever the model does but answer (a bug of its own) is a difference too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, Self

from kernelmodel.conform import Script, play
from kernelmodel.errors import ModelBug

__all__ = ["Comparison", "Difference", "modelled", "shrink"]

_NOTHING: Final = "(nothing)"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first line of a trace that differs."""

    operation: str  #: the script's line, "" where the trace's line answers none
    kernel: str
    model: str

    def __str__(self) -> str:
        what = f"{self.operation!r}: " if self.operation else ""
        return f"{what}the kernel says {self.kernel!r}, the model {self.model!r}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of one script on both sides."""

    kernel: tuple[str, ...]
    model: tuple[str, ...]
    difference: Difference | None

    @classmethod
    def of(cls, text: str, kernel: Sequence[str]) -> Self:
        """Play a script on the model and compare.

        Raises:
            kernelmodel.conform.ScriptError: it is no script.
        """
        return cls.between(text, kernel, modelled(text))

    @classmethod
    def between(cls, text: str, kernel: Sequence[str], model: Sequence[str]) -> Self:
        """Compare two traces of a script."""
        script = text.splitlines()
        for one, other in zip_longest(kernel, model, fillvalue=_NOTHING):
            if one != other:
                number = (one if one != _NOTHING else other).split()[1]
                operation = script[int(number) - 1] if number.isdecimal() else ""
                return cls(tuple(kernel), tuple(model), Difference(operation, one, other))
        return cls(tuple(kernel), tuple(model), None)


def modelled(text: str) -> tuple[str, ...]:
    """The model's trace; where the model has a bug, that is its last line."""
    trace: list[str] = []
    try:
        trace.extend(play(Script.parse(text)))
    except ModelBug as bug:
        return (*trace, f"ModelBug: {bug}")
    return tuple(trace)


def shrink(text: str, differs: Callable[[str], bool], most_tries: int) -> str:
    """The least part of a script that still differs, as far as so many tries get.

    Takes out runs of lines, halves first, then ever shorter ones.
    """
    lines = text.splitlines()
    size = max(1, len(lines) // 2)
    while size and most_tries > 0:
        at = 0
        while at < len(lines) and most_tries > 0:
            fewer = lines[:at] + lines[at + size :]
            most_tries -= 1
            if fewer and differs("\n".join(fewer) + "\n"):
                lines = fewer
            else:
                at += size
        size //= 2
    return "\n".join(lines) + "\n"
