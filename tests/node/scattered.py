"""Hosts whose free memory lies in crumbs, and VMs that had to take them."""

from __future__ import annotations

import random

from node.host import Host

__all__ = ["start_scattered"]


def start_scattered(host: Host, name: str, nr_pages: int, seed: int = 1) -> None:
    """Start a VM anew on `nr_pages` single pages, no two side by side, and on runs for the rest.

    Somebody took all there was, a page here and one there has come back in no order, and no more
    of the small blocks are free than these.
    """
    vm, allocator = host.vm(name), host.kernel.page_alloc
    vm.stop()
    runs = allocator.alloc_bulk(0, 2 * nr_pages + 64, vm.nid, movable=True)
    every_other = [pfn for first, nr in runs for pfn in range(first + first % 2, first + nr, 2)]
    free = every_other[:nr_pages]
    random.Random(seed).shuffle(free)
    for pfn in free:
        allocator.free_pages(pfn, 0)
    vm.start(host.kernel)
