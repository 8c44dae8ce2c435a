"""What one update of one host costs under a design: bytes, seconds, pages.

Bytes are counted where they lie: every page that was allocated to be handed over has an owner by
name (`kernelmodel.owners`), which is hugetlb's shared state, a file, or LUO and KHO themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fleet.designs.host import DesignHost
from fleet.designs.spec import HostSpec
from kernelmodel.errors import KernelError, KernelPanic
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.owners import preserved_by_owner
from kernelmodel.sim.cost import CostModel
from node.api import BLACKOUT_PHASES

__all__ = ["Measured", "measure", "page_label"]

_NS: Final = 1e9


def page_label(order: int) -> str:
    """A page size as it is written: 2MiB, 1GiB."""
    size = 1 << order + PAGE_SHIFT
    return f"{size >> 30}GiB" if size >> 30 else f"{size >> 20}MiB"


@dataclass(slots=True)
class Measured:
    """One update. Pages are by page size; a key that is missing is 0.

    `shared_bytes` were written for the next kernel, `shared_memory` is what they take in pages,
    `file_memory` the same of all files together. `boot_excess` is how many pages a pool and what
    is still preserved have beyond what the command line asks for, when the agent starts;
    `final_excess` the same of the pool when all is finished. `moved` pages are in a pool of another
    node than before the update. `ended` is why the next kernel, or its agent, did not come up.
    """

    design: str
    vms: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # VMs by errno
    lost: dict[str, int] = field(default_factory=dict)
    guest_memfd_works: bool | None = None  # None: there was no guest_memfd on the largest pages
    shared_bytes: int = 0
    shared_memory: int = 0
    file_memory: int = 0
    preserve_seconds: float = 0.0
    prepare_seconds: float = 0.0
    blackout_seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    restricted_seconds: float = 0.0
    boot_excess: dict[str, int] = field(default_factory=dict)
    final_excess: dict[str, int] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)
    ended: str = ""


def measure(spec: HostSpec, design: str, cost: CostModel) -> Measured:
    """Power on, start VMs, update once."""
    host = DesignHost(spec, design, cost)
    found = Measured(design, vms=len(host.vms))
    nodes = host.node_pages()
    host.load()
    host.preserve()
    host.settle()
    host.pause()
    began_ns = host.clock.now_ns
    image = host.freeze()
    frozen_since = keeper_since(host)
    if frozen_since is not None:
        found.restricted_seconds = (host.clock.now_ns - frozen_since) / _NS
    found.shared_bytes = host.design.shared_bytes
    found.shared_memory, found.file_memory = _memory(host)
    try:
        host.jump(image)
    except (KernelPanic, KernelError) as error:
        found.ended = str(error)
        return found
    found.boot_excess = _excess(host, with_unclaimed=True)
    host.retrieve()
    found.blackout_seconds = (host.clock.now_ns - began_ns) / _NS
    host.finish()
    found.final_excess = _excess(host, with_unclaimed=False)
    found.moved = _moved(nodes, host.node_pages())
    _times(host, found)
    found.refused = dict(Counter(host.refused.values()))
    found.lost = dict(Counter(host.lost.values()))
    largest = max((vm.spec.order for vm in host.vms.values()), default=0)
    guests = [vm for vm in host.vms.values() if vm.spec.guest_memfd and vm.spec.order == largest]
    if guests:
        failed = {**host.refused, **host.lost}
        found.guest_memfd_works = all(vm.spec.name not in failed for vm in guests)
    return found


def keeper_since(host: DesignHost) -> int | None:
    """Since when pools have been frozen; None if they are not."""
    return getattr(host.kernel.hugetlb.door.keeper, "since_ns", None)


def _memory(host: DesignHost) -> tuple[int, int]:
    """Memory that the shared state takes, and that of all files."""
    shared = files = 0
    for entry in preserved_by_owner(host.kernel):
        size = (entry.nr << entry.order) * PAGE_SIZE if entry.own else 0
        if ", token " in entry.owner:
            files += size
        elif entry.owner.startswith(("FLB ", "global state ", "subsystem ")):
            shared += size
    return shared, files


def _excess(host: DesignHost, *, with_unclaimed: bool) -> dict[str, int]:
    unclaimed, pools = host.unclaimed(), host.pools()
    excess: dict[str, int] = {}
    for order, asked in host.asked().items():
        n = pools.get(order, 0) + (unclaimed[order] if with_unclaimed else 0) - asked
        if n:
            excess[page_label(order)] = n
    return excess


def _moved(
    before: Mapping[tuple[int, int], int], after: Mapping[tuple[int, int], int]
) -> dict[str, int]:
    moved: dict[str, int] = {}
    for (order, nid), n in after.items():
        more = n - before.get((order, nid), 0)
        if more > 0:
            moved[page_label(order)] = moved.get(page_label(order), 0) + more
    grown: dict[str, int] = {}
    for (order, _), n in after.items():
        grown[page_label(order)] = grown.get(page_label(order), 0) + n
    for (order, _), n in before.items():
        grown[page_label(order)] -= n
    return {
        label: n - max(0, grown[label]) for label, n in moved.items() if n > max(0, grown[label])
    }


def _times(host: DesignHost, found: Measured) -> None:
    phases = dict.fromkeys(BLACKOUT_PHASES, 0.0)
    for phase in host.phases:
        seconds = phase.duration_ns / _NS
        if phase.name in phases:
            phases[phase.name] += seconds
        elif phase.name == "preserve":
            found.preserve_seconds = seconds
        elif phase.name == "prepare":
            found.prepare_seconds = seconds
    found.phases = phases
