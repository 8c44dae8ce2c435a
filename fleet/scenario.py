"""A scenario: the fleet, the update, how it is rolled out and what goes wrong.

These are the values that everything else in `fleet` works on. They come from
`load_scenario`, which has checked them, so that nobody further down has to. Times are
integer nanoseconds, sizes bytes; fractions ("25%") are already resolved to hosts.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from fleet.bad_input import BadInput, InputFault
from node.api import FaultSpec, HostSpec, UpdatePolicy, VmSpec

__all__ = [
    "BadInput",
    "GateSpec",
    "InputFault",
    "RolloutSpec",
    "Scenario",
]


class GateSpec(Struct, frozen=True):
    """What a rollout may cost; it halts as soon as one of these is *exceeded*."""

    max_failed_hosts: int = 0
    max_lost_vms: int = 0
    max_downtime_ns: int | None = None  # of any one VM, None for no limit


class RolloutSpec(Struct, frozen=True):
    """How the update goes over the fleet."""

    canary: int = 1  # hosts updated first, on their own; 0 for none
    wave_size: int = 1  # hosts of each later wave
    max_unavailable: dict[str, int] = {}  # domain key -> hosts down at once per value of it
    soak_ns: int = 0  # wait after each wave, before its gate
    canary_soak_ns: int = 0  # the same after the canary
    spread: str = "rack"  # domain key over whose values a wave is dealt out, "" for table order
    gate: GateSpec = GateSpec()


class Scenario(Struct, frozen=True):
    """One checked scenario. `digest` identifies its content, wherever its files lie."""

    name: str
    source: Path
    seed: int
    hosts: tuple[HostSpec, ...]  # in the order of the inventory
    vms: tuple[VmSpec, ...]
    target_release: str
    rollout: RolloutSpec
    update: UpdatePolicy
    faults: tuple[FaultSpec, ...]
    cost_profile: str  # TOML text of overriding rows, "" for the built-in profile
    downtime_budget_ns: int  # what a VM's downtime is held against in reports
    digest: str  # hex over everything above but `source`, the seed included
