"""hugetlb as files: /sys/kernel/mm/hugepages, each node's part of it, /proc/meminfo, /proc/sys/vm.

Reproduces mm/hugetlb_sysfs.c and mm/hugetlb_sysctl.c of Linux 7.3, names and text as the running
kernel shows them.

Happy path: `files` lists what there is, `read` gives the text, `write` does what writing does.
`nr_hugepages` is for all nodes, below a node's directory for that node; `nr_hugepages_mempolicy`
for the nodes of the writer's memory policy. `demote` splits free gigantic pages. Below /proc/sys/vm
`nr_hugepages` reads as the size that the pool was set to, without surplus pages.

Unhappy paths: a path that is not there is ENOENT, a file that cannot be written to EACCES, what is
no number EINVAL. A pool that cannot become what was written becomes what it can, without an error.

Simplifications: `demote_size` cannot be changed (on x86 there is one size to choose); numbers have
no limit (ERANGE) and are decimal below /proc/sys too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from kernelmodel.errors import AccessDenied, InvalidArgument, NoEntry
from kernelmodel.mm.hstate import Hstate
from kernelmodel.mm.hugetlb import HugetlbState
from kernelmodel.mm.mempolicy import Placement
from kernelmodel.mm.mmzone import PAGE_SHIFT

__all__ = ["files", "node_meminfo", "read", "write"]

_SYSFS: Final = re.compile(
    r"/sys/(?:kernel/mm|devices/system/node/node(\d+))/hugepages/hugepages-(\d+)kB/(\w+)"
)
_SYSCTL: Final = "/proc/sys/vm/"
#: Of the default size.
_SYSCTLS: Final = ("nr_hugepages", "nr_hugepages_mempolicy", "nr_overcommit_hugepages")
_HVO: Final = "hugetlb_optimize_vmemmap"


def files(state: HugetlbState) -> list[str]:
    """Every path that `read` knows, sorted."""
    paths = [_SYSCTL + name for name in (*_SYSCTLS, _HVO)]
    for hstate in state.hstates.values():
        for nid in (None, *hstate.nodes):
            root = "kernel/mm" if nid is None else f"devices/system/node/node{nid}"
            folder = f"/sys/{root}/hugepages/hugepages-{_kib(hstate)}kB"
            paths += [f"{folder}/{name}" for name in _names(state, hstate, nid)]
    return sorted(paths)


def _kib(hstate: Hstate) -> int:
    return 1 << hstate.order + PAGE_SHIFT - 10


def _names(state: HugetlbState, hstate: Hstate, nid: int | None) -> Iterator[str]:
    yield from hstate.sysfs(nid)
    if _smaller(state, hstate) is not None:
        yield from ("demote", "demote_size")


def _smaller(state: HugetlbState, hstate: Hstate) -> Hstate | None:
    """The next smaller pool, into which pages can be demoted. C: hugetlb_init_hstates()."""
    orders = [order for order in state.hstates if order < hstate.order]
    return state.hstates[max(orders)] if orders else None


def _find(state: HugetlbState, path: str) -> tuple[Hstate, int | None, str]:
    if path.startswith(_SYSCTL):
        name = path.removeprefix(_SYSCTL)
        if name in _SYSCTLS:
            return state.hstates[state.default_order], None, name
    match = _SYSFS.fullmatch(path)
    if match:
        for hstate in state.hstates.values():
            nid = None if match[1] is None else int(match[1])
            known = nid is None or nid in hstate.nodes
            if _kib(hstate) == int(match[2]) and known and match[3] in _names(state, hstate, nid):
                return hstate, nid, match[3]
    raise NoEntry("no such file", path=path)


def read(state: HugetlbState, path: str) -> str:
    """The text of a file. Raises: NoEntry; AccessDenied for one that is only written to."""
    if path == _SYSCTL + _HVO:
        return f"{int(state.vmemmap.enabled)}\n"
    hstate, nid, name = _find(state, path)
    if path.startswith(_SYSCTL) and name != "nr_overcommit_hugepages":
        return f"{hstate.max_huge_pages}\n"
    if name == "demote":
        raise AccessDenied("only written to", path=path)
    smaller = _smaller(state, hstate)
    if name == "demote_size" and smaller is not None:
        return f"{_kib(smaller)}kB\n"
    return hstate.sysfs(nid)[name]


def write(state: HugetlbState, path: str, text: str, place: Placement | None = None) -> None:
    """Write to a file as a task with this placement.

    Raises:
        NoEntry, AccessDenied: no such file, or not writable. InvalidArgument: no number.
        Others: of whoever keeps the pools' door.
    """
    place = Placement() if place is None else place
    if path == _SYSCTL + _HVO:
        state.vmemmap.enabled = bool(_number(text))
        return
    hstate, nid, name = _find(state, path)
    if name == "nr_hugepages":
        hstate.set_max_huge_pages(_number(text), nid)
    elif name == "nr_hugepages_mempolicy":
        nids = place.resizable(list(hstate.nodes))
        hstate.set_max_huge_pages(_number(text), nids=nids)
    elif name == "nr_overcommit_hugepages":
        hstate.nr_overcommit_huge_pages = _number(text)
    elif name == "demote":
        smaller = _smaller(state, hstate)
        assert smaller is not None, "only such pools have the file"
        hstate.demote(_number(text), smaller, nid)
    else:
        raise AccessDenied("not writable", path=path)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]+\n?", text):
        raise InvalidArgument("no number", text=text)
    return int(text)


def node_meminfo(state: HugetlbState, nid: int) -> str:
    """A node's meminfo, the lines about the default size. C: hugetlb_report_node_meminfo()."""
    node = state.hstates[state.default_order].nodes[nid]
    return (
        f"Node {nid} HugePages_Total: {node.nr_huge_pages:5d}\n"
        f"Node {nid} HugePages_Free:  {node.nr_free:5d}\n"
        f"Node {nid} HugePages_Surp:  {node.surplus:5d}\n"
    )
