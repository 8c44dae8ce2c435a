"""Many short runs given to the page allocator at once, as `PageAllocator` does them one by one.

C: memblock_free_pages(), adjust_managed_page_count(), 7.3.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from kernelmodel.errors import ModelBug
from kernelmodel.mm.extents import Extents, Frames
from kernelmodel.mm.mmzone import FreeArea, MigrateType, Zone
from kernelmodel.mm.page_alloc import PageAllocator

__all__ = ["adjust_managed_pages", "free_extents"]


def free_extents(allocator: PageAllocator, pages: Extents) -> None:
    """As `free_range` for each of these runs of one node, which ascend and do not touch."""
    if not len(pages):
        return
    areas: list[tuple[Zone, FreeArea]] = []
    area_of = np.full(len(pages), -1)  # for `free_range` to sort out
    for zone in allocator.zones(allocator.pfn_to_nid(int(pages.pfns[0]))):
        cuts = [zone.start_pfn, *(pfn for run in zone.cma for pfn in run), zone.end_pfn]
        for nr, (low, high) in enumerate(pairwise(cuts)):
            inside = slice(
                np.searchsorted(pages.pfns, low), np.searchsorted(pages.ends, high, "right")
            )
            area_of[inside] = len(areas)
            areas.append((zone, zone.areas[MigrateType.CMA if nr % 2 else MigrateType.OTHER]))
    area_of[[0, -1]] = -1  # pages beside them may be free already
    for first, last in pairwise([0, *(np.flatnonzero(np.diff(area_of)) + 1).tolist(), len(pages)]):
        part = Extents(pages.pfns[first:last], pages.counts[first:last])
        if area_of[first] < 0:
            for run in part:
                allocator.free_range(*run)
        else:
            zone, area = areas[int(area_of[first])]
            zone.managed += part.total
            area.put_many(part)


def adjust_managed_pages(allocator: PageAllocator, frames: Frames) -> None:
    """As `adjust_managed` for each of these page frames."""
    left = len(frames)
    for node in allocator.nodes.values():
        for low, high in node.spans:
            for zone in node.zones:
                first, last = max(low, zone.start_pfn), min(high, zone.end_pfn)
                if first < last:
                    found = int(np.count_nonzero((frames >= first) & (frames < last)))
                    zone.managed += found
                    left -= found
    if left:
        raise ModelBug(f"{left} of many page frames do not exist")
