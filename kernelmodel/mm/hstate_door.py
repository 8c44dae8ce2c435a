"""The one door through which pages enter and leave pools of huge pages.

Linux 7.3 has no such door: pools grow and shrink at any time. A design that has written down which
pages a pool consists of must keep it so until the jump, or until nobody preserves any more; it
puts itself at the door as `keeper` and takes itself away again.

The keeper is asked before pages are added (a write to `nr_hugepages`, a surplus page for a promise
or a fault, demotion) and before pages leave (a shrinking write, surplus pages that are freed,
demotion, dissolving). It answers how many may pass, or raises what the system call shall return.
Where a kernel function cannot fail, as with freeing a surplus page, it must answer a number: pages
that may not leave stay in the pool as free surplus pages until `Hstate.trim_surplus`.

Pages that come back from a handover do not pass the door.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["PoolDoor", "PoolKeeper"]


class PoolKeeper(Protocol):
    """Who decides about changes of pools."""

    def may_add(self, order: int, n: int, *, surplus: bool) -> int:
        """How many of `n` pages of `order` may enter their pool; or a KernelError."""
        ...

    def may_remove(self, order: int, n: int, *, surplus: bool) -> int:
        """How many of `n` pages of `order` may leave their pool.

        A KernelError only where `surplus` is false.
        """
        ...


class PoolDoor:
    """Open unless somebody keeps it."""

    __slots__ = ("keeper",)

    def __init__(self) -> None:
        self.keeper: PoolKeeper | None = None

    def add(self, order: int, n: int, *, surplus: bool = False) -> int:
        """How many of `n` pages may enter."""
        return (
            n if self.keeper is None or n <= 0 else self.keeper.may_add(order, n, surplus=surplus)
        )

    def remove(self, order: int, n: int, *, surplus: bool = False) -> int:
        """How many of `n` pages may leave."""
        if self.keeper is None or n <= 0:
            return n
        return self.keeper.may_remove(order, n, surplus=surplus)
