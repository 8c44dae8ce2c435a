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
_DIGITS_TO: Final = 1 << 32  # samples are told apart by so many parts of a range


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
        columns = [
            halton(plan.samples, _PRIMES[axis % len(_PRIMES)], plan.sampling_seed, axis)
            for axis in range(len(plan.parameters))
        ]
        rows = [tuple(map(_at, plan.parameters, shares)) for shares in zip(*columns, strict=True)]
    cells = (Cell(_key(row), row) for row in rows)
    return tuple({cell.key: cell for cell in cells}.values())


def _at(parameter: Parameter, share: float) -> Choice:
    if parameter.range is not None:
        return parameter.range.sample(share)
    return parameter.choices[int(share * len(parameter.choices))]


def halton(count: int, base: int, seed: int, axis: int) -> list[float]:
    """The first `count` numbers in [0, 1), evenly spread, of one axis of a Halton sequence.

    Digits are permuted at random, at each place by itself (A. B. Owen, A randomized Halton
    algorithm in R, 2017): without that the first numbers of two large bases rise together, and two
    parameters are varied as one.
    """
    permutations: list[list[int]] = []
    while base ** len(permutations) < _DIGITS_TO:
        permutations.append(list(range(base)))
        stream(seed, "halton", axis, len(permutations)).shuffle(permutations[-1])
    shares = []
    for nr in range(count):
        share, weight, rest = 0.0, 1.0, nr
        for permutation in permutations:
            weight /= base
            rest, digit = divmod(rest, base)
            share += permutation[digit] * weight
        shares.append(share)
    return shares


def _key(choices: tuple[Choice, ...]) -> str:
    text = "\n".join(override for choice in choices for override in choice.overrides)
    return blake2b(text.encode(), digest_size=6).hexdigest()
