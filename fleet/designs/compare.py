"""Every design on one host: what it is, what an update costs under it, what failures leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Final

from fleet.designs.failures import Failures, fail
from fleet.designs.host import NoLiveUpdate, release_of
from fleet.designs.measure import Measured, measure
from fleet.designs.spec import HostSpec
from kernelmodel.errors import KernelError
from kernelmodel.hugetlb_designs import DESIGNS, HugetlbDesign
from kernelmodel.sim.cost import CostModel

__all__ = ["Compared", "Curve", "about", "as_json", "compare", "curves"]

#: What memory and the number of VMs are multiplied by for the plots: (numerator, denominator).
_STEPS: Final = ((1, 4), (1, 2), (1, 1), (2, 1))


@dataclass(frozen=True, slots=True)
class Compared:
    """One design."""

    update: Measured
    failures: Failures

    @property
    def name(self) -> str:
        """The design's."""
        return self.update.design


@dataclass(frozen=True, slots=True)
class Curve:
    """Updates of hosts that differ in one thing, by its value: `vms`, or `memory` in bytes."""

    what: str
    points: tuple[tuple[int, Measured], ...]


def about(name: str) -> type[HugetlbDesign]:
    """The class of a design, which says where it comes from and what it needs."""
    design = DESIGNS[name]
    assert isinstance(design, type), "designs are made by their classes"
    assert issubclass(design, HugetlbDesign), "as the table's type says"
    return design


def compare(
    spec: HostSpec, names: Iterable[str], cost: CostModel, done: Callable[[str], object]
) -> list[Compared]:
    """Run every case of these designs; `done` is called with the name of each that is through."""
    found = []
    for name in names:
        found.append(Compared(measure(spec, name, cost), fail(spec, name, cost)))
        done(name)
    return found


def curves(spec: HostSpec, known: Compared, cost: CostModel) -> list[Curve]:
    """The same design on hosts with fewer and more VMs, and with less and more memory.

    Hosts that are too small for their pools or their VMs are left out.
    """

    def points(field: str, value: int) -> tuple[tuple[int, Measured], ...]:
        found: dict[int, Measured] = {}
        for up, down in _STEPS:
            other = max(1, value * up // down)
            same = other == value
            varied = replace(spec, **{field: other})  # type: ignore[arg-type]  # vms or memory
            try:
                at = known.update if same else measure(varied, known.name, cost)
            except (NoLiveUpdate, KernelError):
                continue  # no such host can run, whatever the design
            # More VMs than pages are as many VMs as pages.
            found[at.vms if field == "vms" else other] = at
        return tuple(found.items())

    return [Curve("vms", points("vms", spec.vms)), Curve("memory", points("memory", spec.memory))]


def as_json(
    spec: HostSpec, found: Iterable[Compared], plots: dict[str, list[Curve]]
) -> dict[str, object]:
    """Everything, for programs."""
    designs = []
    for one in found:
        design = about(one.name)
        designs.append(
            {
                "name": one.name,
                "source": design.source,
                "luo": design.luo,
                "release": release_of(one.name).name,
                "callbacks": list(design.callbacks),
                "update": asdict(one.update) | {"phase_shares": _shares(one.update)},
                "failures": asdict(one.failures),
                "curves": {
                    curve.what: [asdict(m) | {curve.what: at} for at, m in curve.points]
                    for curve in plots.get(one.name, ())
                },
            }
        )
    return {"host": asdict(spec) | {"cmdline": spec.cmdline()}, "designs": designs}


def _shares(update: Measured) -> dict[str, float]:
    whole = update.blackout_seconds
    return {name: seconds / whole if whole else 0.0 for name, seconds in update.phases.items()}
