"""Where a task's huge pages come from: its memory policy, its cpuset, the node that it runs on.

Reproduces Linux 7.3's mm/mempolicy.c as hugetlb uses it, checked against the running kernel on two
nodes. A policy says which nodes may serve and in which order; for a huge page the order begins at
the policy's node (interleaved: that of the page's index in the file) and goes on in a ring.

Simplifications: distances between nodes play no part; a policy is the whole task's or, with
`mbind`, the whole mapping's; no weighted interleaving.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernelmodel.mm.hugetlb_cgroup import HugetlbCgroup

__all__ = ["MemPolicy", "Mode", "Placement", "placement", "ring"]


class Mode(IntEnum):
    """C: enum in include/uapi/linux/mempolicy.h; the numbers are the system call's."""

    DEFAULT = 0
    PREFERRED = 1
    BIND = 2
    INTERLEAVE = 3
    LOCAL = 4
    PREFERRED_MANY = 5


@dataclass(frozen=True, slots=True)
class MemPolicy:
    """C: struct mempolicy. `nodes` are empty for DEFAULT and LOCAL."""

    mode: Mode = Mode.DEFAULT
    nodes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where pages for a task come from, and who pays.

    `nid` is the node that the task runs on, `mems_allowed` its cpuset's nodes (None: all).
    """

    nid: int = 0
    policy: MemPolicy = MemPolicy()
    mems_allowed: frozenset[int] | None = None
    cgroup: HugetlbCgroup | None = None

    def _in_cpuset(self, nids: Iterable[int]) -> list[int]:
        return [nid for nid in nids if self.mems_allowed is None or nid in self.mems_allowed]

    def reservable(self, nids: Sequence[int]) -> list[int]:
        """Nodes whose free pages a promise may count on. C: allowed_mems_nr()."""
        bound = self.policy.mode is Mode.BIND
        if not bound and self.mems_allowed is None:
            return list(nids)
        return self._in_cpuset(nid for nid in nids if not bound or nid in self.policy.nodes)

    def resizable(self, nids: Sequence[int]) -> list[int]:
        """Nodes that a write to `nr_hugepages_mempolicy` is about. C: init_nodemask_of_mempolicy().

        Unlike promises, this heeds every policy that names nodes.
        """
        if self.policy.mode is Mode.LOCAL:
            return [self.nid]
        return [nid for nid in nids if not self.policy.nodes or nid in self.policy.nodes]

    def orders(self, first: int, last: int, nids: Sequence[int]) -> Iterable[tuple[int, list[int]]]:
        """For the page indices [first, last): (end of a stretch, nodes to try in order)."""
        mode, named = self.policy.mode, self.policy.nodes
        if mode is Mode.INTERLEAVE and named:
            return self._interleaved(first, last, nids)
        start = named[0] if mode is Mode.PREFERRED and named else self.nid
        order = ring(nids, start)
        if self.mems_allowed is not None:
            order = self._in_cpuset(order)
        if mode is Mode.BIND:
            order = [nid for nid in order if nid in named]
        elif mode is Mode.PREFERRED_MANY:
            order.sort(key=lambda nid: nid not in named)
        return [(last, order)]

    def _interleaved(
        self, first: int, last: int, nids: Sequence[int]
    ) -> Iterator[tuple[int, list[int]]]:
        named = self.policy.nodes
        for index in range(first, last):
            yield index + 1, self._in_cpuset(ring(nids, named[index % len(named)]))


def ring(nids: Sequence[int], first: int) -> list[int]:
    """`nids` from `first` on and round; all of them in their order if it is not there."""
    at = nids.index(first) if first in nids else 0
    return [*nids[at:], *nids[:at]]


def placement(where: int | Placement) -> Placement:
    """A node's number stands for a task that runs there, without a policy."""
    return _on_node(where) if isinstance(where, int) else where


@lru_cache(maxsize=1024)
def _on_node(nid: int) -> Placement:
    return Placement(nid)
