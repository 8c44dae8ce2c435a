"""An experiment: which fields of a scenario are varied, how, and what is asked of the runs.

`SweepPlan` is what `lufleet sweep` works on; `fleet.sweep.experiment_file` reads it.

Every cell is run with the same seeds (common random numbers): a host's luck depends on the seed and
on names alone, so two cells differ by what was varied, and few seeds show it.
"""

from __future__ import annotations

import math
from pathlib import Path

from msgspec import Struct

__all__ = ["Adaptive", "Choice", "Goal", "Parameter", "Range", "SweepPlan"]


class Choice(Struct, frozen=True):
    """One value of a parameter: what tables and plots call it, and the overrides it stands for."""

    label: str
    overrides: tuple[str, ...]
    number: float | None = None  # its place on an axis, None for what has no order


class Range(Struct, frozen=True):
    """Values between two ends, for random samples; `steps` of them for a grid."""

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False
    unit: str = ""
    steps: int = 0

    def at(self, share: float) -> Choice:
        """The value that lies `share` (0 to 1) of the way from one end to the other."""
        number = self._between(self.high, share)
        return self._choice(round(number) if self.whole else number)

    def sample(self, share: float) -> Choice:
        """As `at`, for a share below 1; of whole numbers each has an equal part of the shares."""
        if not self.whole:
            return self.at(share)
        return self._choice(min(self.high, math.floor(self._between(self.high + 1, share))))

    def _between(self, high: float, share: float) -> float:
        if self.log:
            return float(self.low * (high / self.low) ** share)
        return self.low + (high - self.low) * share

    def _choice(self, number: float) -> Choice:
        text = f"{number:.0f}" if self.whole else f"{float(f'{number:.6g}'):.15g}"
        label = f"{text}{self.unit}"
        value = f'"{label}"' if self.unit else text
        return Choice(label, (f"{self.key}={value}",), float(text))


class Parameter(Struct, frozen=True):
    """Something that is varied; it has `choices` or a `range`."""

    name: str
    choices: tuple[Choice, ...] = ()
    range: Range | None = None


class Adaptive(Struct, frozen=True):
    """When a cell has been run often enough: its 95 % interval of `metric` is narrow.

    `half_width` is in the metric's unit, or a share of the mean if `relative`.
    """

    metric: str = "downtime_p99_seconds"
    half_width: float = 0.05
    relative: bool = True
    min_seeds: int = 16
    max_seeds: int = 64


class Goal(Struct, frozen=True):
    """What is looked for: the least of one metric, with others within limits."""

    minimise: str = "rollout_seconds"
    within: tuple[tuple[str, float], ...] = ()

    @property
    def allows_halted(self) -> bool:
        """Whether it says itself how many rollouts may be halted."""
        return any(name == "halted" for name, _ in self.within)


class SweepPlan(Struct, frozen=True):
    """One checked experiment. The digests are those of the scenario that it varies."""

    name: str
    source: Path
    scenario: Path
    seeds: tuple[int, ...]
    parameters: tuple[Parameter, ...]
    method: str
    samples: int
    sampling_seed: int
    adaptive: Adaptive
    goal: Goal
    base_digest: str
    cost_digest: str
    budget_seconds: float
