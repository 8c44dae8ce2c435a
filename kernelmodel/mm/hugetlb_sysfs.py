"""hugetlb as files: /sys/kernel/mm/hugepages, each node's part of it, /proc/meminfo, /proc/sys/vm.

Reproduces mm/hugetlb_sysfs.c and mm/hugetlb_sysctl.c of Linux 7.3, names and text as the running
kernel shows them.

Happy path: `files` lists what there is, `read` gives the text, `write` does what writing does.
`nr_hugepages` is for all nodes, below a node's directory for that node; `nr_hugepages_mempolicy`
for the nodes of the writer's memory policy. `demote` splits free gigantic pages. Below /proc/sys/vm
`nr_hugepages` reads as the size that the pool was set to, without surplus pages.

Unhappy paths: a path that is not there is ENOENT, a file that cannot be written to EACCES, what is
no number EINVAL. A pool that cannot become what was written becomes what it can, without an error.

The two trees read numbers differently. Below /sys they are decimal, with a plus or without, and one
end of line may follow: nothing else, and ERANGE from 2^64 on. Below /proc/sys a 0x or a 0 in front
makes them hexadecimal or octal, there is no plus, space may be around them, what follows that space
is not taken, and more than 20 digits or 64 bits are EINVAL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from kernelmodel.errors import AccessDenied, InvalidArgument, NoEntry, OutOfRange
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.hstate import Hstate
from kernelmodel.mm.hugetlb import HugetlbState
from kernelmodel.mm.mempolicy import Placement
from kernelmodel.params import memparse

__all__ = ["files", "node_meminfo", "read", "write"]

_SYSFS: Final = re.compile(
    r"/sys/(?:kernel/mm|devices/system/node/node(\d+))/hugepages/hugepages-(\d+)kB/(\w+)"
)
_SYSCTL: Final = "/proc/sys/vm/"
#: Of the default size.
_SYSCTLS: Final = ("nr_hugepages", "nr_hugepages_mempolicy", "nr_overcommit_hugepages")
_HVO: Final = "hugetlb_optimize_vmemmap"
_WRITABLE: Final = (*_SYSCTLS, "demote", "demote_size")
#: A sign, and what stands before space or the end.
_SYSCTL_NUMBER: Final = re.compile(
    r"[ \t\n]*(-?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)(?:[ \t\n]+|\Z)"
)
#: Digits that a number may have, with what stands in front for its base.
_SYSCTL_DIGITS: Final = 20
_ULONG_MAX: Final = (1 << 64) - 1
_INT_MAX: Final = (1 << 31) - 1


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


def write(state: HugetlbState, path: str, text: str, place: Placement | None = None) -> int:
    """Write to a file as a task with this placement; how many bytes were taken.

    Raises:
        NoEntry, AccessDenied: no such file, or not writable. InvalidArgument: no number.
        OutOfRange: not below 2^64. Others: of whoever keeps the pools' door.
    """
    place = Placement() if place is None else place
    if path == _SYSCTL + _HVO:
        if text:
            number, taken = _sysctl_number(text, -_INT_MAX - 1, _INT_MAX)
            state.vmemmap.enabled = bool(number)
            return taken
        return 0
    hstate, nid, name = _find(state, path)
    if name not in _WRITABLE:
        raise AccessDenied("not writable", path=path)
    if not text:
        return 0
    smaller = _smaller(state, hstate)
    if name == "demote_size":  # on x86 there is one size to choose
        if smaller is None or memparse(text)[0] != _kib(smaller) << 10:
            raise InvalidArgument("no smaller pool has such pages", text=text)
        return len(text)
    number, taken = (_sysctl_number if path.startswith(_SYSCTL) else _sysfs_number)(text)
    if name == "nr_hugepages":
        hstate.set_max_huge_pages(number, nid)
    elif name == "nr_hugepages_mempolicy":
        hstate.set_max_huge_pages(number, nids=place.resizable(list(hstate.nodes)))
    elif name == "nr_overcommit_hugepages":
        hstate.nr_overcommit_huge_pages = number
    else:
        assert smaller is not None, "only such pools have the file"
        hstate.demote(number, smaller, nid)
    return taken


def _sysfs_number(text: str) -> tuple[int, int]:
    """What is written below /sys, and how much of it was taken: all. C: kstrtoul()."""
    match = re.match(r"\+?([0-9]+)", text)
    if match is None:
        raise InvalidArgument("no number", text=text)
    if int(match[1]) > _ULONG_MAX:
        raise OutOfRange("too large a number", text=text)
    if text[match.end() :] not in ("", "\n"):
        raise InvalidArgument("more than a number", text=text)
    return int(match[1]), len(text)


def _sysctl_number(text: str, least: int = 0, most: int = _ULONG_MAX) -> tuple[int, int]:
    """The first number written below /proc/sys, and how much was taken. C: proc_get_long()."""
    match = _SYSCTL_NUMBER.match(text)
    if match is None or len(match[2]) > _SYSCTL_DIGITS or (match[1] and least == 0):
        raise InvalidArgument("no number", text=text)
    base = 16 if match[2][:2] in ("0x", "0X") else 8 if match[2][0] == "0" else 10
    number = int(match[1] + match[2], base)
    if not least <= number <= most:
        raise InvalidArgument("beyond what the file takes", text=text)
    return number, match.end()


def node_meminfo(state: HugetlbState, nid: int) -> str:
    """A node's meminfo, the lines about the default size. C: hugetlb_report_node_meminfo()."""
    node = state.hstates[state.default_order].nodes[nid]
    return (
        f"Node {nid} HugePages_Total: {node.nr_huge_pages:5d}\n"
        f"Node {nid} HugePages_Free:  {node.nr_free:5d}\n"
        f"Node {nid} HugePages_Surp:  {node.surplus:5d}\n"
    )
