"""Who owns what is preserved under LUO v4, by name: the other half of `kernelmodel.owners`.

Sessions, files, subsystems and global states are asked what they believe to have preserved: the
page at their data, if it is one, or all that a subsystem's operations, those of a global state or a
file's `private` name if they are `KeepsPages`. A subsystem that got no cancel when another
one's freeze failed is still asked: what it preserved is still there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from kernelmodel.abi.luo_v4 import LiveupdateState
from kernelmodel.luo_v4.array import SerArray
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from kernelmodel.owners import KeepsPages, Preserved, page_at

if TYPE_CHECKING:
    from kernelmodel.kernel import Kernel
    from kernelmodel.luo_v4.core import LuoV4
    from kernelmodel.luo_v4.session import LuoSession

__all__ = ["preserved_pages"]


def preserved_pages(luo: LuoV4) -> Iterator[Preserved]:
    """Everything in the outgoing tree but KHO's own FDT and radix nodes."""
    kernel = luo.kernel
    for name, (pa, size) in kernel.kho.outgoing_subtrees.items():
        owner = "LUO: header" if pa == luo.fdt.pa else f"KHO: subtree {name}"
        yield from _array(owner, SerArray(pa, -(-size // PAGE_SIZE)))
    yield from _array("LUO: array of sessions", luo.sessions.array)
    for session in luo.sessions.sessions:
        yield from _session(kernel, session)
    yield from _array("LUO: array of global states", luo.global_states.array)
    for name, ops, data in luo.global_states.outgoing():
        yield from _kept(kernel, f"global state {name}", ops, data)
    for h in luo.subsystems.registered:
        if h.prepared and h.ops not in (luo.sessions, luo.global_states):
            yield from _kept(kernel, f"subsystem {h.name}", h.ops, h.data)


def _session(kernel: Kernel, session: LuoSession) -> Iterator[Preserved]:
    name = session.name.decode(errors="replace")
    yield from _array(f"session {name}: array of files", session.files.array)
    for luo_file in session.files.files.values():
        if luo_file.state is LiveupdateState.UPDATED:
            continue  # it came over, and its data is an address of the previous kernel's tree
        owner = f"session {name}, token {luo_file.token}"
        yield from _kept(kernel, owner, luo_file.private, luo_file.data)


def _kept(kernel: Kernel, owner: str, keeper: object, data: int) -> Iterator[Preserved]:
    if isinstance(keeper, KeepsPages):
        for preserved in keeper.preserved_pages(kernel):
            yield replace(preserved, owner=f"{owner}: {preserved.owner}")
    else:
        yield from page_at(kernel, owner, data)


def _array(owner: str, array: SerArray) -> Iterator[Preserved]:
    if array.pgcnt:
        yield Preserved(owner, array.pa >> PAGE_SHIFT, array.pgcnt.bit_length() - 1)
