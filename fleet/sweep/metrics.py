"""What is taken from each run of a sweep: one number a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from fleet.results import Result
from fleet.sweep.statistics import Estimate, estimate, estimate_share

__all__ = ["METRICS", "Metric", "estimate_of", "measure"]


class Metric(Struct, frozen=True):
    """A number that a run yields; less is better for all of them but where `more_is_better`.

    `of` gives infinity for a downtime that a lost VM decides and None for what a run does not
    have.
    """

    title: str
    unit: str  # "s" for seconds, "%" for a share, "" for a number
    of: Callable[[Result], float | None]
    more_is_better: bool = False
    is_yes_or_no: bool = False  # 1 or 0 in each run


def _seconds(value: float | None, result: Result) -> float:
    """A downtime. None where a lost VM decides it: nobody waits longer. 0 if no VM was paused."""
    if value is not None:
        return value
    return math.inf if result.downtime_seconds.lost else 0.0


def _within_budget(result: Result) -> float:
    downtime = result.downtime_seconds
    return downtime.within_budget / downtime.count if downtime.count else 1.0


def _at_risk(result: Result) -> float:
    """Share of the VMs whose memory was given up: lost, or restarted."""
    return (result.vms.lost + result.vms.restarted) / max(1, result.vms.total)


def _duration(result: Result) -> float | None:
    """A rollout that was halted did not take short, it did not get there."""
    return result.rollout.virtual_seconds if result.rollout.state == "completed" else None


METRICS: Final[dict[str, Metric]] = {
    "rollout_seconds": Metric("rollout", "s", _duration),
    "downtime_mean_seconds": Metric(
        "mean downtime", "s", lambda r: _seconds(r.downtime_seconds.mean, r)
    ),
    "downtime_p50_seconds": Metric(
        "downtime p50", "s", lambda r: _seconds(r.downtime_seconds.p50, r)
    ),
    "downtime_p90_seconds": Metric(
        "downtime p90", "s", lambda r: _seconds(r.downtime_seconds.p90, r)
    ),
    "downtime_p99_seconds": Metric(
        "downtime p99", "s", lambda r: _seconds(r.downtime_seconds.p99, r)
    ),
    "downtime_max_seconds": Metric(
        "longest downtime", "s", lambda r: _seconds(r.downtime_seconds.max, r)
    ),
    "within_budget": Metric("VMs within budget", "%", _within_budget, more_is_better=True),
    "vms_given_up": Metric("VMs given up", "%", _at_risk),
    "vms_lost": Metric("VMs lost", "", lambda r: float(r.vms.lost)),
    "vms_restarted": Metric("VMs restarted", "", lambda r: float(r.vms.restarted)),
    "hosts_updated": Metric(
        "hosts updated", "%", lambda r: r.hosts.updated / max(1, r.hosts.total), more_is_better=True
    ),
    "hosts_failed": Metric(
        "hosts failed or rolled back", "", lambda r: float(r.hosts.failed + r.hosts.rolled_back)
    ),
    "halted": Metric(
        "rollouts halted",
        "%",
        lambda r: float(r.rollout.state != "completed"),
        is_yes_or_no=True,
    ),
}


def estimate_of(name: str, values: Sequence[float]) -> Estimate:
    """What the runs of a cell say of a metric."""
    return estimate_share(values) if METRICS[name].is_yes_or_no else estimate(values)


def measure(result: Result) -> dict[str, float]:
    """Every metric that one run has."""
    values = {name: metric.of(result) for name, metric in METRICS.items()}
    return {name: value for name, value in values.items() if value is not None}
