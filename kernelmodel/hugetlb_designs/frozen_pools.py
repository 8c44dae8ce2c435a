"""Pools held as they are, by whoever has written down what they consist of.

Happy path: `freeze` puts a keeper at the pools' door, `thaw` takes it away and lets go the surplus
pages that had to wait.

Unhappy paths, while frozen: a write to `nr_hugepages` that would change a pool, demotion and
dissolving are EBUSY; no surplus page comes or goes, so that a fault or a promise beyond the pool
fails as it does when overcommit is used up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernelmodel.errors import Busy

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel

__all__ = ["FrozenPools"]


class FrozenPools:
    """The keeper; `since_ns` is the instant at which it shut the door, None while it is open."""

    __slots__ = ("kernel", "since_ns")

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.since_ns: int | None = None

    def freeze(self) -> None:
        """From here on pools neither grow nor shrink."""
        self.kernel.hugetlb.door.keeper = self
        self.since_ns = self.kernel.clock.now_ns

    def thaw(self) -> None:
        """They do again."""
        self.kernel.hugetlb.door.keeper = None
        self.since_ns = None
        for hstate in self.kernel.hugetlb.hstates.values():
            hstate.trim_surplus()

    def may_add(self, order: int, n: int, *, surplus: bool) -> int:
        """Nothing enters. Raises: Busy where somebody asked for it."""
        if not surplus:
            raise Busy("pools are frozen for a live update", order=order, pages=n)
        return 0

    def may_remove(self, order: int, n: int, *, surplus: bool) -> int:
        """Nothing leaves. Raises: Busy where somebody asked for it."""
        return self.may_add(order, n, surplus=surplus)
