"""The host on which designs are compared, as its user describes it, and the VMs that follow.

VMs are of one size for each page size: the used part of a pool, shared out evenly to the VMs that
it backs. Every so-many-th VM is backed by a guest_memfd instead of a memfd. More of the used pages
are on node 0 than on the others, as on hosts that fill up node by node: a design that forgets
where pages were shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

from kernelmodel.memory import GIB, MIB, PAGE_SHIFT

__all__ = ["PRESETS", "HostSpec", "VmSpec", "small"]

TIB: Final = 1 << 40
_PERCENT: Final = 100


@dataclass(frozen=True, slots=True)
class VmSpec:
    """One VM: `pages` huge pages of `order`, on node `nid` as far as it has them."""

    name: str
    order: int
    pages: int
    nid: int
    guest_memfd: bool


@dataclass(frozen=True, slots=True)
class HostSpec:
    """Memory in bytes, shares in percent.

    `pools` is the part of memory that each page size (bytes) gets; `pool_use` the part of a pool
    that VMs use, `first_node` the part of what is used that lies on node 0, if there are others.
    """

    memory: int = 2 * TIB
    vms: int = 400
    pools: tuple[tuple[int, int], ...] = ((GIB, 70), (2 * MIB, 18))
    pool_use: int = 80
    guest_memfd: int = 25
    nodes: int = 2
    first_node: int = 60
    cpus: int = 192
    seed: int = 0

    def pool_pages(self) -> dict[int, int]:
        """Pages that the command line asks for, by page size in bytes."""
        return {size: self.memory * share // _PERCENT // size for size, share in self.pools}

    def cmdline(self) -> str:
        """What the host boots with."""
        words = ["kho=on", "liveupdate=on"]
        for size, pages in self.pool_pages().items():
            unit = f"{size // GIB}G" if size >= GIB else f"{size // MIB}M"
            words += [f"hugepagesz={unit}", f"hugepages={pages}"]
        return " ".join(words)

    def node_bytes(self) -> tuple[int, ...]:
        """Memory of each node: the same in whole MiB, and the first ones have what is left over."""
        each, left = divmod(self.memory // MIB, self.nodes)
        return tuple((each + (nid < left)) * MIB for nid in range(self.nodes))

    def vm_specs(self) -> list[VmSpec]:
        """The VMs; those that no page is left for are left out."""
        found: list[VmSpec] = []
        pools = self.pool_pages()
        total = sum(size * pages for size, pages in pools.items())
        left = self.vms
        for nr, (size, pages) in enumerate(pools.items()):
            last = nr == len(pools) - 1
            nr_vms = left if last else round(Fraction(self.vms * size * pages, total or 1))
            left -= nr_vms
            used = pages * self.pool_use // _PERCENT
            found += self._of_pool(size, used, nr_vms, len(found))
        return found

    def _of_pool(self, size: int, used: int, nr_vms: int, first: int) -> list[VmSpec]:
        order = size.bit_length() - 1 - PAGE_SHIFT
        on_first = used * self.first_node // _PERCENT if self.nodes > 1 else used
        found: list[VmSpec] = []
        placed = 0
        for nr in range(nr_vms):
            n = used // nr_vms + (nr < used % nr_vms)
            other = 1 + nr % (self.nodes - 1) if self.nodes > 1 else 0
            number = first + nr
            guest = number * self.guest_memfd // _PERCENT
            next_guest = (number + 1) * self.guest_memfd // _PERCENT
            if n:
                nid = 0 if placed < on_first else other
                found.append(VmSpec(f"vm{number:04}", order, n, nid, guest != next_guest))
            placed += n
        return found


PRESETS: Final = {
    "2TiB": HostSpec(),
    "12TiB": HostSpec(memory=12 * TIB, vms=600, nodes=4, cpus=384),
}


def small(spec: HostSpec) -> HostSpec:
    """A host of the same proportions that is quick to update many times: 256 GiB, 16 VMs."""
    return replace(spec, memory=256 * GIB, vms=min(16, spec.vms), cpus=16, nodes=min(2, spec.nodes))
