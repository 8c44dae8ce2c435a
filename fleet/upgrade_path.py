"""Which steps of an upgrade path keep live update possible, told from the releases' strings alone.

A step goes from the release that runs to the next one; the question is what becomes of VMs that
are preserved over it, by what backs them:

- `live`: they come back.
- `cold`: nothing can be handed over in the first place. The kernel that runs has no LUO or no
  handler for the VMs' memory, or the next one cannot be loaded. Nothing happens to the host.
- `loses-memory`: the jump succeeds and the VMs' memory is gone. KHO of the next kernel does not
  know the format and boots as if nothing had been handed over, or nobody there can take it back.
- `panics`: LUO of the next kernel finds another version than its own and stops the machine.
- `EIO`: a handler is missing there; /dev/liveupdate answers EIO for ever, to all VMs.

Whatever is not live can be done by a cold reboot, which restarts the VMs.

Simplification: the kernel compares strings for equality, and so a detour never makes a step live
that was not; the search is for what can be reached, and over how many cold reboots. Whether
memory suffices is none of its business (`fleet.host_memory`).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise

from msgspec import Struct

from kernelmodel.releases import Release
from node.api import Backing

__all__ = ["Step", "Verdict", "best_path", "cold_steps", "judge", "judge_path"]


class Verdict(StrEnum):
    """What a step makes of the VMs."""

    LIVE = "live"
    COLD = "cold"
    LOSES_MEMORY = "loses-memory"
    PANICS = "panics"
    EIO = "EIO"


class Step(Struct, frozen=True):
    """One step: from a release to a release, and what it does."""

    at: str
    to: str
    verdict: Verdict
    reason: str
    backing: Backing | None = None  # the one to blame, if it is what backs VMs

    @property
    def live(self) -> bool:
        """Whether VMs keep their memory."""
        return self.verdict is Verdict.LIVE


def judge(at: Release, to: Release, backings: Collection[Backing] = (Backing.MEMFD,)) -> Step:
    """One step, for VMs backed by these; the questions come in the order of an update."""
    used = list(dict.fromkeys(backings))
    return _outgoing(at, to, used) or _incoming(at, to, used) or _live(at, to, used)


def _outgoing(at: Release, to: Release, backings: list[Backing]) -> Step | None:
    """Why nothing can be handed over, if so."""
    if at.kho is None or at.luo is None:
        reason = f"{at.name} has no {'KHO' if at.kho is None else 'LUO'}"
        return Step(at.name, to.name, Verdict.COLD, reason)
    if not to.relocatable:
        reason = f"{to.name} is not relocatable: kexec answers ENOEXEC"
        return Step(at.name, to.name, Verdict.COLD, reason)
    for backing in backings:
        if _handler(at, backing) is None:
            reason = f"{at.name} has no handler for {_what(backing)}, it refuses them with ENOENT"
            return Step(at.name, to.name, Verdict.COLD, reason, backing)
    return None


def _incoming(at: Release, to: Release, backings: list[Backing]) -> Step | None:
    """Why the next kernel does not take what it is handed, if so."""
    if at.kho != to.kho or to.luo is None:
        return Step(at.name, to.name, Verdict.LOSES_MEMORY, _why_lost(at, to)) if backings else None
    if (at.luo, at.luo_design) != (to.luo, to.luo_design):
        reason = f"{at.name} hands over {_luo(at)}, {to.name} wants {_luo(to)}"
        return Step(at.name, to.name, Verdict.PANICS, reason)
    for backing in backings:
        ours, theirs = _handler(at, backing), _handler(to, backing)
        if ours != theirs:
            reason = f"{_what(backing)} want a handler for {ours}, {to.name} has {theirs or 'none'}"
            return Step(at.name, to.name, Verdict.EIO, reason, backing)
    for backing in backings:
        if backing is not Backing.MEMFD and at.hugetlb != to.hugetlb:
            reason = f"shared state of hugetlb is {at.hugetlb}, {to.name} looks for {to.hugetlb}"
            return Step(at.name, to.name, Verdict.LOSES_MEMORY, reason, backing)
    return None


def _live(at: Release, to: Release, backings: list[Backing]) -> Step:
    if not backings:
        return Step(at.name, to.name, Verdict.LIVE, "no VM has memory to lose")
    shared = [at.kho, at.luo, *(_handler(at, backing) for backing in backings)]
    reason = f"both have {', '.join(dict.fromkeys(filter(None, shared)))}"
    return Step(at.name, to.name, Verdict.LIVE, reason)


def _handler(release: Release, backing: Backing) -> str | None:
    """The compatible string of the handler for this kind of memory."""
    return release.memfd if backing is Backing.MEMFD else release.hugemfd


def _what(backing: Backing) -> str:
    return "plain memfds" if backing is Backing.MEMFD else "hugetlb memfds"


def _luo(release: Release) -> str:
    return f"{release.luo} of the v4 proposal" if release.luo_design == "v4" else str(release.luo)


def _why_lost(at: Release, to: Release) -> str:
    if to.kho is None:
        return f"{at.name} hands over {at.kho}, {to.name} has no KHO and boots as from cold"
    if at.kho != to.kho:
        return f"{at.name} hands over {at.kho}, {to.name} reads {to.kho} and boots as from cold"
    return f"{to.name} has no LUO: what was preserved stays reserved, and nobody can have it back"


def judge_path(
    path: Sequence[str], known: Mapping[str, Release], backings: Collection[Backing]
) -> list[Step]:
    """Every step of a path."""
    return [judge(known[at], known[to], backings) for at, to in pairwise(path)]


def cold_steps(path: Iterable[Step]) -> int:
    """How often VMs have to be restarted."""
    return sum(not step.live for step in path)


def best_path(
    start: str, goal: str, known: Mapping[str, Release], backings: Collection[Backing]
) -> list[Step]:
    """The path with the fewest cold steps, of those the shortest; first in the catalogue wins.

    Any release may lie on the way. Empty if there is nowhere to go.
    """
    order = {name: nr for nr, name in enumerate(known)}
    heap: list[tuple[int, int, list[int], str, list[Step]]] = [(0, 0, [], start, [])]
    done: set[str] = set()
    while heap:
        cold, length, ranks, here, path = heapq.heappop(heap)
        if here == goal:
            return path
        if here in done:
            continue
        done.add(here)
        for name in known:
            if name not in done:
                step = judge(known[here], known[name], backings)
                rank = [*ranks, order[name]]
                entry = (cold + (not step.live), length + 1, rank, name, [*path, step])
                heapq.heappush(heap, entry)
    return []
