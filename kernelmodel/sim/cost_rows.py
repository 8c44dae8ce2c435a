"""The values of a cost model: a row for each operation, and the spreads that give it a tail."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import ClassVar, Final

from kernelmodel.errors import ModelBug

__all__ = ["KINDS", "CostRow", "Spread", "time_text"]

#: Where a figure is from: public (or arithmetic on public figures that the source text shows and
#: calls derived), somebody's own measurement, or an estimate.
KINDS: Final = ("published", "measured", "estimate")

_PERMILLE: Final = 1000


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantile table: `points` are (quantile, multiplier), both in permille, both rising."""

    name: str
    points: tuple[tuple[int, int], ...]
    kind: str
    source: str

    #: Draws are integers in [0, RESOLUTION): a thousand steps from one permille to the next.
    RESOLUTION: ClassVar[int] = 1_000_000

    #: Draws at which the stretches between points end; (first draw, draws, multiplier, rise).
    _ends: list[int] = field(init=False, repr=False, compare=False)
    _stretches: list[tuple[int, int, int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scale = self.RESOLUTION // _PERMILLE
        ends, stretches = [], []
        left, low = 0, 0
        for right, high in self.points:
            if right:
                ends.append(right * scale)
                stretches.append((left * scale, (right - left) * scale, low, high - low))
            left, low = right, high
        object.__setattr__(self, "_ends", ends)
        object.__setattr__(self, "_stretches", stretches)

    def told(self) -> str:
        """The table as people read it: "0 % → 0.92, 50 % → 1, 100 % → 2.5"."""
        return ", ".join(f"{at / 10:g} % → {factor / 1000:g}" for at, factor in self.points)

    def multiplier_permille(self, drawn: int) -> int:
        """The multiplier at the quantile drawn / RESOLUTION, rounded down to a permille."""
        try:
            first, draws, low, rise = self._stretches[bisect_left(self._ends, drawn)]
        except IndexError:
            message = f"the quantile {drawn} is beyond the spread {self.name!r}"
            raise ModelBug(message) from None
        return low + rise * (drawn - first) // draws


@dataclass(frozen=True, slots=True)
class CostRow:
    """What one operation costs, and how we know.

    Attributes:
        op: the operation's name, as model code charges it.
        base_ns: nanoseconds for each charge, whatever the units.
        per_unit_ps: picoseconds for each unit.
        unit: what a unit is.
        kind: one of `KINDS`.
        source: where the figures are from; never empty.
        spread: name of the `Spread` that multiplies each charge, or "".
        stream: name of the group that a fault can slow as a whole, or "".
    """

    op: str
    base_ns: int
    per_unit_ps: int
    unit: str
    kind: str
    source: str
    spread: str = ""
    stream: str = ""

    def cost_ns(self, units: int) -> int:
        """Nanoseconds for `units`, to the nearest (half up); without spread."""
        return self.base_ns + (units * self.per_unit_ps + 500) // 1000

    def told(self) -> str:
        """The figures as people read them: "65 µs + 41.291 ns / radix key"."""
        each, per_unit = time_text(self.base_ns * 1000), time_text(self.per_unit_ps)
        told = [each, f"{per_unit} / {self.unit}" if per_unit else ""]
        return " + ".join(filter(None, told)) or "nothing"


def time_text(ps: int) -> str:
    """Picoseconds as people write them: "41.291 ns", "4.5 s"; nothing for zero."""
    for unit, size in (("s", 10**12), ("ms", 10**9), ("µs", 10**6), ("ns", 10**3)):
        if ps >= size:
            return f"{ps / size:.6g} {unit}"
    return f"{ps} ps" if ps else ""
