"""The cells of a sweep: the combinations of values that are run, each with every seed."""

from __future__ import annotations

from hashlib import blake2b
from itertools import product
from typing import Final

from msgspec import Struct

from fleet.sweep.plan import Choice, Parameter, SweepPlan
from kernelmodel.sim.rng import stream

__all__ = ["Cell", "cells_of", "halton"]

_PRIMES: Final = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)


class Cell(Struct, frozen=True):
    """One combination: a choice for each parameter, in the order of the plan.

    `key` is a function of the overrides alone, so that a sweep that was extended or reordered
    knows its cells again.
    """

    key: str
    choices: tuple[Choice, ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """What `--set` would take."""
        return tuple(text for choice in self.choices for text in choice.overrides)


def cells_of(plan: SweepPlan) -> tuple[Cell, ...]:
    """Every cell of the plan, once, in a fixed order: a grid varies its last parameter fastest."""
    if plan.method == "grid":
        rows = list(product(*(parameter.choices for parameter in plan.parameters)))
    elif plan.method == "random":
        rng = stream(plan.sampling_seed, "sweep", plan.name)
        rows = [
            tuple(_at(parameter, rng.getrandbits(53) / (1 << 53)) for parameter in plan.parameters)
            for _ in range(plan.samples)
        ]
    else:
        start = plan.sampling_seed
        rows = [
            tuple(
                _at(parameter, halton(start + nr, _PRIMES[axis % len(_PRIMES)]))
                for axis, parameter in enumerate(plan.parameters)
            )
            for nr in range(plan.samples)
        ]
    cells = (Cell(_key(row), row) for row in rows)
    return tuple({cell.key: cell for cell in cells}.values())


def _at(parameter: Parameter, share: float) -> Choice:
    if parameter.range is not None:
        return parameter.range.at(share)
    return parameter.choices[int(share * len(parameter.choices))]


def halton(index: int, base: int) -> float:
    """The `index`-th number (from 1) of the van der Corput sequence: [0, 1), evenly spread."""
    share, weight = 0.0, 1.0
    while index:
        weight /= base
        index, digit = divmod(index, base)
        share += digit * weight
    return share


def _key(choices: tuple[Choice, ...]) -> str:
    text = "\n".join(override for choice in choices for override in choice.overrides)
    return blake2b(text.encode(), digest_size=6).hexdigest()
