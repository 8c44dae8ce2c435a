"""What can be seen of a host from outside: its sessions, its counters, its kernel's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from msgspec import Struct

from kernelmodel.kernel import Kernel
from kernelmodel.kho.debugfs import debugfs_files
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm import hugetlb_sysfs
from node.api import Backing, HostGauges
from node.vm import Vm, VmState

__all__ = ["SessionView", "debugfs", "gauges", "instead", "sessions"]


_VM_STATES: Final = tuple(state.value for state in VmState)


class SessionView(Struct, frozen=True):
    """One live-update session."""

    name: str
    outgoing: bool
    tokens: tuple[int, ...]
    retrieved: bool


def sessions(kernel: Kernel) -> list[SessionView]:
    """All sessions that a kernel knows, outgoing ones first, each list in its order."""
    known = kernel.luo.sessions
    return [
        SessionView(
            session.name.split(b"\0", 1)[0].decode(errors="replace"),
            outgoing,
            tuple([luo_file.token for luo_file in session.file_set.files]),
            session.retrieved,
        )
        for outgoing, those in ((True, known.outgoing), (False, known.incoming))
        for session in those
    ]


def instead(known: Iterable[SessionView], name: str) -> str:
    """What there is instead of an open session of a name, for people."""
    is_open = {session: session.outgoing or session.retrieved for session in known}
    name = name.partition("\0")[0]
    if any(session.name == name for session, yes in is_open.items() if not yes):
        return "one came over, RetrieveSession opens it"
    return f"open are: {', '.join(one.name for one, yes in is_open.items() if yes) or 'none'}"


def gauges(kernel: Kernel | None, vms: Iterable[Vm]) -> HostGauges:
    """Counters of a host whose kernel may be down."""
    states = dict.fromkeys(_VM_STATES, 0)
    for vm in vms:
        states[vm.state] += 1
    if kernel is None:
        return HostGauges("", states, {}, 0)
    pools: dict[str, dict[str, int]] = {}
    for backing in (Backing.HUGETLB_2M, Backing.HUGETLB_1G):
        order = backing.page_bytes.bit_length() - 1 - PAGE_SHIFT
        hstate = kernel.hugetlb.hstates.get(order)
        if hstate is not None:
            pools[backing.page_label] = {
                "free": hstate.free_huge_pages,
                "used": hstate.nr_huge_pages - hstate.free_huge_pages,
                "reserved": hstate.resv_huge_pages,
                "surplus": hstate.surplus_huge_pages,
            }
    scratch = sum(area.size for area in kernel.kho.scratch)
    return HostGauges(kernel.release.name, states, pools, scratch)


def debugfs(kernel: Kernel) -> dict[str, Callable[[], str]]:
    """Files that a kernel shows, by path, each made when it is read.

    What KHO shows below /sys/kernel/debug, with bytes that are no text in hex. Of /proc the
    hugetlb lines of meminfo, buddyinfo and cmdline; hugetlb's files below /sys and /proc/sys/vm,
    and its lines of each node's meminfo. The kernel's log is `dmesg`.
    """
    hugetlb = kernel.hugetlb
    readable = (path for path in hugetlb_sysfs.files(hugetlb) if not path.endswith("/demote"))
    return {
        **{path: partial(_text, content) for path, content in debugfs_files(kernel).items()},
        "proc/meminfo": hugetlb.meminfo,
        "proc/buddyinfo": kernel.page_alloc.buddyinfo,
        "proc/cmdline": lambda: kernel.params.cmdline + "\n",
        "dmesg": lambda: "".join(f"{line}\n" for line in kernel.messages),
        **{path[1:]: partial(hugetlb_sysfs.read, hugetlb, path) for path in readable},
        **{
            f"sys/devices/system/node/node{nid}/meminfo": partial(
                hugetlb_sysfs.node_meminfo, hugetlb, nid
            )
            for nid in kernel.page_alloc.nodes
        },
    }


def _text(content: Callable[[], bytes]) -> str:
    raw = content()
    if all(byte in b"\t\n" or 32 <= byte < 127 for byte in raw):
        return raw.decode()
    return raw.hex()
