"""The frozen plan of a rollout: which hosts are the canary, which make up each wave.

A plan is a function of the scenario alone. Hosts that run the target release already are left
out. The others are dealt out over the failure domains (`deal`), so that every stretch of the
order, and with it every wave, holds each domain in proportion to its size: a bad release shows
up in few hosts of many racks instead of all of one, and the tail of the rollout is not one big
rack that max-unavailable lets through host by host. The first `canary` hosts of that order are
wave 0, the rest is cut into waves of `wave_size`.

What a plan does not say is when a host starts: within a wave that is the coordinator's decision,
host by host, under the limits of `max_unavailable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from fleet.scenario import Scenario
    from node.api import HostSpec, UpdatePolicy

__all__ = ["PlanError", "PlannedWave", "RolloutPlan", "deal", "make_plan"]


_WHOLE: Final = 1 << 64


class PlanError(Exception):
    """The scenario's rollout cannot be planned; `fleet.scenario` finds these with their line."""


class PlannedWave(Struct, frozen=True):
    """Hosts that belong together: started under one wave, soaked and judged together."""

    index: int
    name: str  # "canary", "wave 1", …
    hosts: tuple[str, ...]  # the order in which they are offered a start
    soak_ns: int
    is_canary: bool = False


class RolloutPlan(Struct, frozen=True):
    """Everything the coordinator decides upon; it never changes once a rollout has begun."""

    target_release: str
    update: UpdatePolicy
    waves: tuple[PlannedWave, ...]
    domains: dict[str, tuple[tuple[str, str], ...]]  # host -> the limited (key, value) it is in
    max_unavailable: dict[str, int]  # key -> hosts down at once per value of it
    up_to_date: tuple[str, ...]  # hosts that run the target already: never touched

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host that the plan touches, in plan order."""
        return tuple(host for wave in self.waves for host in wave.hosts)


def deal(hosts: Sequence[HostSpec], keys: Sequence[str]) -> list[HostSpec]:
    """The hosts in an order in which every stretch holds each domain in proportion.

    The hosts of one value of `keys[0]` are dealt over the remaining keys first; host `i` of a
    domain of `n` then takes the place `(2i + 1) / 2n` of the whole, ties go to the domain that
    appears first. Without keys the order stays that of the inventory.
    """
    if not keys or len(hosts) < 2:
        return list(hosts)
    domains: dict[str, list[HostSpec]] = {}
    for host in hosts:
        domains.setdefault(host.domains.get(keys[0], ""), []).append(host)
    # Whole numbers that order as the fractions do and are equal where those are: two fractions
    # whose denominators have 31 bits differ by more than one part of `_WHOLE`.
    places = [
        ((2 * nr + 1) * _WHOLE // (2 * len(members)), rank, host)
        for rank, members in enumerate(domains.values())
        for nr, host in enumerate(deal(members, keys[1:]))
    ]
    places.sort(key=lambda place: place[:2])
    return [host for _, _, host in places]


def make_plan(scenario: Scenario) -> RolloutPlan:
    """The plan of a scenario.

    Raises:
        PlanError: a limit under which no host could ever be updated.
    """
    spec = scenario.rollout
    for key, limit in spec.max_unavailable.items():
        if limit < 1:
            raise PlanError(f"max_unavailable of {key} is {limit}: no host could ever be updated")
    if spec.wave_size < 1:
        raise PlanError(f"wave_size is {spec.wave_size}: no host could ever be updated")
    if spec.canary < 0:
        raise PlanError(f"canary is {spec.canary}: it counts hosts, 0 for none")

    stale = [host for host in scenario.hosts if host.release != scenario.target_release]
    limited = sorted(spec.max_unavailable)
    keys = [key for key in (spec.spread, *limited) if key]
    order = [host.name for host in deal(stale, list(dict.fromkeys(keys)))]

    waves: list[PlannedWave] = []
    if spec.canary and order:
        canaries = tuple(order[: spec.canary])
        waves.append(PlannedWave(0, "canary", canaries, spec.canary_soak_ns, is_canary=True))
    first = len(waves)
    rest = order[spec.canary :]
    for nr, at in enumerate(range(0, len(rest), spec.wave_size), start=1):
        hosts = tuple(rest[at : at + spec.wave_size])
        waves.append(PlannedWave(first + nr - 1, f"wave {nr}", hosts, spec.soak_ns))
    return RolloutPlan(
        target_release=scenario.target_release,
        update=scenario.update,
        waves=tuple(waves),
        domains={
            host.name: tuple((key, host.domains.get(key, "")) for key in limited) for host in stale
        },
        max_unavailable=dict(spec.max_unavailable),
        up_to_date=tuple(
            host.name for host in scenario.hosts if host.release == scenario.target_release
        ),
    )
