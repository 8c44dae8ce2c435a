"""What the runs of a cell say together: means with their 95 % confidence intervals.

Intervals are over seeds: Student's, and Wilson's for what a run is or is not. A metric that is
infinite in some run (a downtime that a lost VM decides) has no mean there; how often it was
infinite is counted instead.

Unhappy path: what strikes few rollouts, and those hard, is not normal. Of six runs none may show
it, and the interval is too narrow then: `largest_unseen` says of what that holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import Final

from msgspec import Struct

__all__ = ["Estimate", "estimate", "estimate_share", "largest_unseen", "student_quantile"]

_CONFIDENCE: Final = 0.95


class Estimate(Struct, frozen=True):
    """A mean over `count` finite values; `half_width` is None with fewer than two of them."""

    count: int
    mean: float | None
    half_width: float | None
    most: float | None
    infinite: int = 0

    @property
    def told(self) -> float | None:
        """The mean, infinity if one of the values is that."""
        return math.inf if self.infinite else self.mean


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of the values; the mean is None if one of them is infinite."""
    finite = [value for value in values if math.isfinite(value)]
    infinite = len(values) - len(finite)
    if not finite:
        return Estimate(0, None, None, None, infinite)
    half_width = None
    if len(finite) > 1:
        quantile = student_quantile((1 + _CONFIDENCE) / 2, len(finite) - 1)
        half_width = quantile * stdev(finite) / math.sqrt(len(finite))
    mean = None if infinite else fmean(finite)
    return Estimate(len(finite), mean, None if infinite else half_width, max(finite), infinite)


def estimate_share(values: Sequence[float]) -> Estimate:
    """The share of the runs that are 1 and not 0; none of six may be one in three.

    The interval is Wilson's, which is not symmetric: `half_width` is the wider side of it.
    """
    if not values:
        return estimate(values)
    count, mean = len(values), fmean(values)
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
    reach = math.sqrt(mean * (1 - mean) / count + (z / (2 * count)) ** 2) * z / (1 + z * z / count)
    return Estimate(count, mean, abs(middle - mean) + reach, max(values))


def largest_unseen(runs: int) -> float:
    """How likely something may be in a run that none of so many runs has shown, at 95 %."""
    return 1.0 - math.pow(1 - _CONFIDENCE, 1 / runs)


def student_quantile(share: float, degrees: int) -> float:
    """The quantile of Student's t distribution, for shares above one half.

    Exact for 1 and 2 degrees of freedom, else the expansion of G. W. Hill, Algorithm 396
    (Communications of the ACM 13, 1970), good to five digits and more.
    """
    tail = 2 * (1 - share)  # of both sides
    if degrees == 1:
        return 1 / math.tan(tail * math.pi / 2)
    if degrees == 2:
        return math.sqrt(2 / (tail * (2 - tail)) - 2)
    a = 1 / (degrees - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * degrees
    y = (d * tail) ** (2 / degrees)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(tail / 2)
        y = x * x
        if degrees < 5:
            c += 0.3 * (degrees - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = a * y * y
        y = math.expm1(y) if y > 0.002 else 0.5 * y * y + y
    else:
        y = (
            (
                1 / (((degrees + 6) / (degrees * y) - 0.089 * d - 0.822) * (degrees + 2) * 3)
                + 0.5 / (degrees + 4)
            )
            * y
            - 1
        ) * (degrees + 1) / (degrees + 2) + 1 / y
    return math.sqrt(degrees * y)
