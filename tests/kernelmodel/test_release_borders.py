"""From one kernel release to another: what the next kernel makes of what it is handed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from kernelmodel import kexec
from kernelmodel.boot import boot
from kernelmodel.errors import KernelError, KernelPanic, NoEntry
from kernelmodel.kernel import Kernel
from kernelmodel.memory import PAGE_SHIFT
from kernelmodel.mm.memfd import HugetlbMemfdInode
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.releases import CATALOGUE, Release, catalogue_with
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, CONFIG, Agent, power_on

PLAIN, HUGE = CATALOGUE["7.3.4"], CATALOGUE["7.3.4+hugetlb"]
KNOWN = catalogue_with(
    (
        replace(PLAIN, name="luo-v6", luo="luo-v6"),
        replace(PLAIN, name="memfd-v3", memfd="memfd-v3"),
        replace(PLAIN, name="no-memfd", memfd=None),
        replace(PLAIN, name="no-kho", kho=None, luo=None, memfd=None),
        replace(HUGE, name="hugetlb-v2", hugetlb="hugetlb-v2"),
    )
)
POOL = f"{CMDLINE} hugepagesz=2M hugepages=4"
NO_KHO, NO_LUO = "kho=off", "liveupdate=off"
MFD_HUGETLB = 4
CONTENT = b"what the guest wrote"


@dataclass(frozen=True, slots=True)
class Crossed:
    """What came of a crossing."""

    boot: str  # "revived", "cold" or the panic's message
    device: str = ""  # "open", or the errno of open(2) of /dev/liveupdate
    memfd: str = ""  # "back", or the errno that it is answered with
    memory: str = ""  # "in use" by its file, "reserved", or "free"


def preserve(kernel: Kernel, *, huge: bool) -> int:
    """A memfd with content in session "s"; where its first page lies."""
    agent = Agent(kernel)
    fd = agent.task.memfd_create(MFD_HUGETLB if huge else 0)
    agent.task.ftruncate(fd, 2 << 20)
    agent.task.fallocate(fd, 0, 0, 2 << 20)
    inode = agent.task.files.fget(fd).inode
    if isinstance(inode, HugetlbMemfdInode):
        ((_, pfn, _),) = inode.hugetlb.folios.within(0, 1)
        kernel.memory.write(pfn << PAGE_SHIFT, CONTENT)  # as its guest does, through a mapping
    else:
        assert isinstance(inode, ShmemInode)
        agent.task.pwrite(fd, CONTENT, 0)
        ((_, pfn, _, _),) = inode.extents(0, 1)
    agent.task.preserve_fd(agent.session("s"), fd, 1)
    return pfn


def jump(kernel: Kernel, to: Release, extra: str = "") -> Kernel:
    kexec.kexec_file_load(kernel, to, f"{POOL} {extra}")
    given = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    return boot(kernel.machine, *given, kernel.clock, config=CONFIG)


def cross(kernel: Kernel, to: str, extra: str = "", *, huge: bool = False) -> Crossed:
    """Preserve a file, jump, try to have it back."""
    pfn = preserve(kernel, huge=huge)
    try:
        fresh = jump(kernel, KNOWN[to], extra)
    except KernelPanic as panic:
        return Crossed(str(panic))
    device, memfd = "open", ""
    try:
        agent = Agent(fresh)
    except KernelError as error:
        device = error.name
        with pytest.raises(type(error)):  # and so it stays
            Agent(fresh)
    else:
        try:
            fd = agent.task.retrieve_fd(agent.retrieve("s"), 1)
            inode = agent.task.files.fget(fd).inode
            assert isinstance(inode, ShmemInode | HugetlbMemfdInode)
            assert inode.read(0, len(CONTENT)) == CONTENT
            memfd = "back"
        except KernelError as error:
            memfd = error.name
    reserved = any(start <= pfn < end for start, end, _ in fresh.kho.tags)
    memory = "reserved" if reserved else "in use" if memfd == "back" else "free"
    revival = "revived" if fresh.kho.incoming is not None else "cold"
    return Crossed(revival, device, memfd, memory)


LIVE = Crossed("revived", "open", "back", "in use")
NOT_REVIVED = Crossed("cold", "open", "ENOENT", "free")
NO_DEVICE = Crossed("revived", "ENOENT", "", "reserved")
STICKY_EIO = Crossed("revived", "EIO", "", "reserved")

BORDERS = [
    # from, to, said to the next kernel, what comes of it
    ("6.19", "7.2.13", "", NOT_REVIVED),
    ("7.2.13", "6.19", "", NOT_REVIVED),
    ("7.3.4+hugetlb", "6.19", "", NOT_REVIVED),
    ("7.3.4", "6.16", "", Crossed("cold", "ENOENT", "", "free")),
    ("7.3.4", "no-kho", "", Crossed("cold", "ENOENT", "", "free")),
    ("6.19", "6.16", "", NO_DEVICE),
    ("7.3.4", "luo-v6", "", Crossed("luo: incompatible handover 'luo-v5'")),
    ("luo-v6", "7.3.4", "", Crossed("luo: incompatible handover 'luo-v6'")),
    ("7.3.4", "luo-v6", NO_LUO, Crossed("luo: incompatible handover 'luo-v5'")),
    ("7.3.4", "luo-v6", NO_KHO, NO_DEVICE),
    ("7.3.4", "7.3.4", NO_KHO, NO_DEVICE),
    ("7.3.4", "7.3.4", NO_LUO, NO_DEVICE),
    (
        "6.19",
        "6.18+luo-v4",
        "",
        Crossed("luo: the handover is no device tree: bad magic 0x6c756f2d"),
    ),
    ("7.3.4", "memfd-v3", "", STICKY_EIO),
    ("7.3.4", "no-memfd", "", STICKY_EIO),
    ("6.19", "6.19", "", LIVE),
    ("7.2.13", "7.3.4", "", LIVE),
    ("7.3.4", "7.2.13", "", LIVE),
    ("7.3.4", "7.3.4+hugetlb", "", LIVE),
    ("7.3.4+hugetlb", "7.3.4", "", LIVE),
    ("7.2.13", "7.3.4+hugetlb", "", LIVE),
]
HUGE_BORDERS = [
    ("7.3.4+hugetlb", "7.3.4", STICKY_EIO),
    ("7.3.4+hugetlb", "7.2.13", STICKY_EIO),
    ("7.3.4+hugetlb", "6.19", NOT_REVIVED),
    ("7.3.4+hugetlb", "hugetlb-v2", Crossed("revived", "open", "ENOENT", "reserved")),
    ("7.3.4+hugetlb", "7.3.2+hugetlb", LIVE),
]


@pytest.mark.parametrize(("at", "to", "extra", "expected"), BORDERS)
def test_a_plain_memfd_at_a_border(at: str, to: str, extra: str, expected: Crossed) -> None:
    assert cross(switch_on(at), to, extra) == expected


@pytest.mark.parametrize(("at", "to", "expected"), HUGE_BORDERS)
def test_a_hugetlb_memfd_at_a_border(at: str, to: str, expected: Crossed) -> None:
    assert cross(switch_on(at), to, huge=True) == expected


def switch_on(release: str, extra: str = "") -> Kernel:
    cmdline = f"{POOL} {extra}"
    if release in CATALOGUE:
        return power_on(cmdline, release)
    kernel = power_on(cmdline)
    return boot(
        kernel.machine,
        KNOWN[release],
        kernel.machine.cold_firmware(cmdline),
        kernel.clock,
        config=CONFIG,
    )


@pytest.mark.parametrize(("at", "extra"), [("6.16", ""), ("7.3.4", NO_KHO), ("7.3.4", NO_LUO)])
def test_a_kernel_that_cannot_preserve_is_followed_by_one_that_can(at: str, extra: str) -> None:
    kernel = switch_on(at, extra)
    with pytest.raises(NoEntry):
        Agent(kernel)
    fresh = jump(kernel, PLAIN)
    assert fresh.luo.liveupdate_num == 0
    assert cross(fresh, "7.3.4") == LIVE


def test_a_kernel_without_luo_hands_over_what_no_luo_has_left_in_it() -> None:
    kernel = jump(switch_on("6.16"), KNOWN["6.19"])
    assert kernel.kho.incoming is not None, "they agree on kho-v1"
    assert kernel.luo.liveupdate_num == 0
    assert cross(kernel, "6.19") == LIVE


def test_there_and_back_again_counts_live_updates_and_loses_nothing() -> None:
    kernel = switch_on("7.2.13")
    preserve(kernel, huge=False)
    for number, release in enumerate(("7.3.2", "7.3.4+hugetlb", "7.3.4", "7.2.13"), start=1):
        kernel = jump(kernel, KNOWN[release])
        assert (kernel.release.name, kernel.luo.liveupdate_num) == (release, number)
        agent = Agent(kernel)
        session = agent.retrieve("s")
        fd = agent.task.retrieve_fd(session, 1)
        assert agent.task.pread(fd, len(CONTENT), 0) == CONTENT
        agent.task.finish_session(session)
        agent.task.close(session)
        validate_kernel(kernel, [agent.task])
        agent.task.preserve_fd(agent.session("s"), fd, 1)


def test_after_eio_for_ever_the_next_reboot_has_all_memory_again() -> None:
    kernel = switch_on("7.3.4")
    pfn = preserve(kernel, huge=False)
    broken = jump(kernel, KNOWN["no-memfd"])
    with pytest.raises(KernelError, match="EIO"):
        Agent(broken)
    fresh = jump(broken, PLAIN)
    assert not any(start <= pfn < end for start, end, _ in fresh.kho.tags)
    assert cross(fresh, "7.3.4") == LIVE


def test_a_session_without_files_needs_no_handler() -> None:
    kernel = switch_on("7.3.4")
    Agent(kernel).session("empty")
    agent = Agent(jump(kernel, KNOWN["no-memfd"]))
    agent.retrieve("empty")


def test_what_is_not_revived_is_told_and_counted_anew() -> None:
    kernel = switch_on("6.19")
    preserve(kernel, huge=False)
    fresh = jump(kernel, KNOWN["7.2.13"])
    (said,) = [line for line in fresh.messages if line.startswith("KHO")]
    assert said == "KHO: disabling KHO revival: compatible is 'kho-v1', expected 'kho-v4'"
    assert fresh.luo.liveupdate_num == 0
