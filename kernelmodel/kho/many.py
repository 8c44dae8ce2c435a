"""Many short runs of single pages, preserved and restored at once, as `Kho` does one by one.

The outcome, and what it costs, is that of single calls. What single calls would refuse somewhere
on the way is left to them: both functions say so, and have done nothing then.

Simplification, *one hold*: the tree's lock is taken once. A test that has several tasks preserve
scattered files at the same time sees them take longer turns.
"""

from __future__ import annotations

from kernelmodel.errors import NoMemory, OutOfRange
from kernelmodel.kho.kexec_handover import TREE_LOCK, Kho
from kernelmodel.mm.extents import Extents
from kernelmodel.mm.free_extents import adjust_managed_pages

__all__ = ["preserve_many", "restore_many"]


def preserve_many(kho: Kho, pages: Extents) -> bool:
    """Preserve single pages; False if they must be tried one by one. C: kho_preserve_folio()."""
    kernel, tree = kho.kernel, kho.outgoing_tree
    if tree is None or kernel.config.kexec_handover_debug:
        return False
    try:
        tree.add_pages(pages)
    except (NoMemory, OutOfRange):
        return False
    with kernel.clock.lock(TREE_LOCK):
        kernel.charge_each("kho_radix_add_key", pages.counts)
    return True


def restore_many(kho: Kho, pages: Extents) -> bool:
    """Take back single pages; False if not all are there. C: kho_restore_folio()."""
    kernel, frames = kho.kernel, pages.frames()
    if not kho.tags.take_pages(frames):
        return False
    adjust_managed_pages(kernel.page_alloc, frames)
    kernel.charge_each("kho_restore_page", pages.counts)
    return True
