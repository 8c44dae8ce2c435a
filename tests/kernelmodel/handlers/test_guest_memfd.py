"""Guest memory across kexec: 4 KiB pages as proposed, huge pages as we propose, both with a VM."""

from __future__ import annotations

import pytest

from kernelmodel import kexec
from kernelmodel.abi.guest_memfd import GuestMemfdSer
from kernelmodel.abi.hugetlb import HugetlbSer
from kernelmodel.boot import boot
from kernelmodel.errors import (
    Busy,
    Exists,
    InvalidArgument,
    IoError,
    KernelPanic,
    NoDevice,
    NoEntry,
    NoMemory,
    NotPermitted,
    NotSupported,
    NotTty,
)
from kernelmodel.kernel import Kernel
from kernelmodel.memory import GIB, MIB, PAGE_SIZE, GuestContent
from kernelmodel.mm.guest_memfd import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    GuestHugetlbInode,
    GuestMemfdInode,
    KvmVmInode,
)
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, Agent, power_on, reboot

RELEASE = "7.3.4+guest-memfd"
SHARED = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
HUGE_2M = SHARED | GUEST_MEMFD_FLAG_HUGETLB | 21 << 26
HUGE_1G = SHARED | GUEST_MEMFD_FLAG_HUGETLB | 30 << 26
HUGE = 2 * MIB
POOL = 8
VM, MEMORY = 7, 8


def start(cmdline: str = f"{CMDLINE} hugepages={POOL}", gib: int = 0) -> Agent:
    nodes = (gib * GIB,) if gib else (256 * MIB,)
    return Agent(power_on(cmdline, RELEASE, nodes))


def guest(agent: Agent, size: int, flags: int = SHARED, vm_type: int = 0) -> tuple[int, int]:
    """Descriptors of a VM and of its memory."""
    vm = agent.task.kvm_create_vm(vm_type)
    return vm, agent.task.kvm_create_guest_memfd(vm, size, flags)


def small(agent: Agent, fd: int) -> GuestMemfdInode:
    inode = agent.task.files.fget(fd).inode
    assert isinstance(inode, GuestMemfdInode)
    return inode


def huge(agent: Agent, fd: int) -> GuestHugetlbInode:
    inode = agent.task.files.fget(fd).inode
    assert isinstance(inode, GuestHugetlbInode)
    return inode


def pool(kernel: Kernel, order: int = 9) -> tuple[int, int, int]:
    """Pages in the pool, free, promised."""
    hstate = kernel.hugetlb.hstate(order)
    return hstate.nr_huge_pages, hstate.free_huge_pages, hstate.resv_huge_pages


def check(agent: Agent) -> None:
    validate_kernel(agent.kernel, [agent.task])


# The files themselves.


@pytest.mark.parametrize(
    ("size", "flags", "refused"),
    [
        (0, SHARED, InvalidArgument),
        (PAGE_SIZE + 1, SHARED, InvalidArgument),
        (PAGE_SIZE, 1 << 5, InvalidArgument),
        (HUGE, SHARED | 21 << 26, InvalidArgument),
        (HUGE + PAGE_SIZE, HUGE_2M, InvalidArgument),
        (HUGE, SHARED | GUEST_MEMFD_FLAG_HUGETLB | 22 << 26, NoDevice),
        ((POOL + 1) * HUGE, HUGE_2M, NoMemory),
    ],
)
def test_what_cannot_be_made_is_refused(size: int, flags: int, refused: type[Exception]) -> None:
    agent = start()
    with pytest.raises(refused):
        guest(agent, size, flags)
    with pytest.raises(NotTty):
        agent.task.kvm_create_guest_memfd(agent.null(), PAGE_SIZE, SHARED)
    assert pool(agent.kernel) == (POOL, POOL, 0)
    check(agent)


@pytest.mark.parametrize(("page", "flags"), [(PAGE_SIZE, SHARED), (HUGE, HUGE_2M)])
def test_a_range_is_allocated_punched_and_never_resized(page: int, flags: int) -> None:
    agent = start()
    _, fd = guest(agent, 4 * page, flags)
    inode = agent.task.files.fget(fd).inode
    assert isinstance(inode, GuestMemfdInode | GuestHugetlbInode)
    agent.task.fallocate(fd, 1, page, 2 * page)
    assert inode.gaps(0, 4) == [(0, 1), (3, 4)]
    agent.task.fallocate(fd, 3, page, page)
    assert inode.gaps(0, 4) == [(0, 2), (3, 4)]
    assert inode.touch(0, 9) == 4  # and not beyond the size
    for mode, offset, length, refused in (
        (0, 0, page, NotSupported),
        (1, 0, 5 * page, InvalidArgument),
        (1, 512, page, InvalidArgument),
    ):
        with pytest.raises(refused):
            agent.task.fallocate(fd, mode, offset, length)
    with pytest.raises(InvalidArgument):
        agent.task.ftruncate(fd, page)
    check(agent)
    agent.task.close(fd)
    assert pool(agent.kernel) == (POOL, POOL, 0)
    check(agent)


def test_private_memory_is_neither_mapped_nor_touched_nor_preserved() -> None:
    agent = start()
    session = agent.session("s")
    for flags in (0, GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP):
        _, fd = guest(agent, PAGE_SIZE, flags)
        inode = small(agent, fd)
        if not flags & GUEST_MEMFD_FLAG_MMAP:
            with pytest.raises(NoDevice):
                inode.mmap()
        if not flags & GUEST_MEMFD_FLAG_INIT_SHARED:
            assert inode.touch(0, 1) == 0  # SIGBUS
        with pytest.raises(NoEntry):
            agent.task.preserve_fd(session, fd, 1)


# Preserved.


@pytest.mark.parametrize(("page", "flags"), [(PAGE_SIZE, SHARED), (HUGE, HUGE_2M)])
def test_a_preserved_file_takes_no_new_pages(page: int, flags: int) -> None:
    agent = start()
    vm, fd = guest(agent, 4 * page, flags)
    inode = agent.task.files.fget(fd).inode
    assert isinstance(inode, GuestMemfdInode | GuestHugetlbInode)
    assert inode.touch(0, 2) == 2
    session = agent.session("s")
    agent.task.preserve_fd(session, fd, MEMORY)
    agent.task.preserve_fd(session, vm, VM)
    for mode in (1, 3):
        with pytest.raises(NotPermitted):
            agent.task.fallocate(fd, mode, 0, page)
    with pytest.raises(Busy):
        agent.task.preserve_fd(session, fd, 3)
    if page == PAGE_SIZE:
        with pytest.raises(NotPermitted):
            inode.populate(0, 3)
        assert inode.touch(0, 4) == 2
    else:
        assert inode.touch(0, 4) == 4  # promised pages were filled in
    check(agent)
    agent.task.close(session)
    assert inode.touch(0, 4) == 4
    check(agent)


def test_memory_comes_back_with_its_vm() -> None:
    agent = start()
    vm, fd = guest(agent, 64 * PAGE_SIZE, vm_type=1)
    small(agent, fd).populate(3, 40)
    small(agent, fd).guest_write(3, 37, GuestContent("vm", 1), 3)
    session = agent.session("s")
    agent.task.preserve_fd(session, fd, MEMORY)  # before the VM: the token is looked up at freeze
    agent.task.preserve_fd(session, vm, VM)
    entry = agent.kernel.luo.sessions.outgoing[0].file_set.files[0].data
    fresh = reboot(agent.kernel)
    ser = GuestMemfdSer.unpack(fresh.memory.read(entry, GuestMemfdSer.SIZE))
    assert (ser.size, ser.flags, ser.nr_folios, ser.vm_token) == (64 * PAGE_SIZE, SHARED, 37, VM)
    after = Agent(fresh)
    session = after.retrieve("s")
    fd = after.task.retrieve_fd(session, MEMORY)  # which retrieves the VM
    vm = after.task.retrieve_fd(session, VM)
    inode, vm_inode = small(after, fd), after.task.files.fget(vm).inode
    assert isinstance(vm_inode, KvmVmInode)
    assert (inode.kvm, vm_inode.kvm.vm_type) == (vm_inode.kvm, 1)
    assert inode.gaps(0, 64) == [(0, 3), (40, 64)]
    for index, pfn, nr in inode.extents(0, 64):
        for n in range(nr):
            assert fresh.memory.page(pfn + n) == GuestContent("vm", 1).page(index + n)
    check(after)
    after.task.finish_session(session)
    assert not fresh.tainted
    assert inode.populate(0, 64) == 64
    after.task.close(fd)
    check(after)


@pytest.mark.parametrize("flags", [SHARED, HUGE_2M])
def test_memory_without_its_vm_fails_the_freeze(flags: int) -> None:
    agent = start()
    vm, fd = guest(agent, 2 * HUGE, flags)
    huge_fd = agent.task.memfd_create(MFD_HUGETLB | 21 << MFD_HUGE_SHIFT)
    agent.task.ftruncate(huge_fd, HUGE)
    session = agent.session("s")
    agent.task.preserve_fd(session, huge_fd, 1)
    agent.task.preserve_fd(session, fd, MEMORY)
    agent.task.preserve_fd(agent.session("another"), vm, VM)
    with pytest.raises(NoEntry):
        reboot(agent.kernel)
    check(agent)
    agent.task.preserve_fd(session, agent.task.kvm_create_vm(), 9)  # not its VM
    with pytest.raises(NoEntry):
        reboot(agent.kernel)
    agent.task.close(session)
    check(agent)


def handed_over_with(token: int, flags: int) -> tuple[Agent, int]:
    """The next kernel's agent, and a session in which memory says that `token` is its VM."""
    agent = start()
    vm, fd = guest(agent, 2 * HUGE, flags)
    session = agent.session("s")
    agent.task.preserve_fd(session, vm, VM)
    agent.task.preserve_fd(session, fd, MEMORY)
    kernel = agent.kernel
    data = kernel.luo.sessions.outgoing[0].file_set.files[1].data
    kexec.kexec_file_load(kernel, kernel.release, kernel.params.cmdline)
    image = kexec.kernel_kexec(kernel)
    kernel.memory.write_u64(data + 24, token)
    given = kexec.jump(kernel, image)
    after = Agent(boot(kernel.machine, *given, kernel.clock, config=kernel.config))
    return after, after.retrieve("s")


@pytest.mark.parametrize("flags", [SHARED, HUGE_2M])
def test_memory_whose_vm_is_missing_in_the_next_kernel_is_leaked(flags: int) -> None:
    after, session = handed_over_with(99, flags)
    for _ in range(2):
        with pytest.raises(NoEntry):
            after.task.retrieve_fd(session, MEMORY)
    after.task.close(session)
    assert after.kernel.hugetlb.hstate(9).free_huge_pages == POOL - 2 * (flags == HUGE_2M)


@pytest.mark.parametrize("flags", [SHARED, HUGE_2M])
def test_memory_that_says_it_is_its_own_vm_waits_for_itself_for_ever(flags: int) -> None:
    after, session = handed_over_with(MEMORY, flags)
    with pytest.raises(KernelPanic, match="hang: token 0x8 waits for itself"):
        after.task.retrieve_fd(session, MEMORY)


@pytest.mark.parametrize("flags", [SHARED, HUGE_2M])
def test_memory_that_nobody_retrieves_is_freed(flags: int) -> None:
    agent = start()
    vm, fd = guest(agent, 2 * HUGE, flags)
    (small if flags == SHARED else huge)(agent, fd).populate(0, 2)
    session = agent.session("s")
    agent.task.preserve_fd(session, vm, VM)
    agent.task.preserve_fd(session, fd, MEMORY)
    after = Agent(reboot(agent.kernel))
    after.task.close(after.retrieve("s"))
    assert pool(after.kernel) == (POOL, POOL, 0)
    assert sum(high - low for low, high, _ in after.kernel.kho.tags) == 3
    check(after)


@pytest.mark.parametrize(("broken", "refused"), [("folio", IoError), ("twice", Exists)])
def test_pages_that_came_back_before_one_is_missing_stay_nobodys(
    broken: str, refused: type[Exception]
) -> None:
    agent = start()
    vm, fd = guest(agent, 4 * PAGE_SIZE)
    small(agent, fd).populate(0, 4)
    session = agent.session("s")
    agent.task.preserve_fd(session, vm, VM)
    agent.task.preserve_fd(session, fd, MEMORY)
    kernel = agent.kernel
    data = kernel.luo.sessions.outgoing[0].file_set.files[1].data
    table = kernel.memory.u64(kernel.memory.u64(data + 32) + 8)
    pfns = [kernel.memory.u64(table + 16 * n) & (1 << 52) - 1 for n in range(4)]
    if broken == "folio":
        kernel.kho.unpreserve_folios(pfns[2], 0)
    else:  # the third says that it is the second
        kernel.memory.write_u64(table + 16 * 2 + 8, 1)
    after = Agent(reboot(kernel))
    session = after.retrieve("s")
    for _ in range(2):
        with pytest.raises(refused):
            after.task.retrieve_fd(session, MEMORY)
    after.task.close(session)
    assert not any(after.kernel.page_alloc.any_free(pfn, 1) for pfn in pfns[:2])
    check(after)


# Shared state with memfds.


def test_guest_memory_and_memfds_share_one_count() -> None:
    agent = start(f"{CMDLINE} hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=6", gib=6)
    kernel = agent.kernel
    vm, fd = guest(agent, 2 * GIB, HUGE_1G)
    guest(agent, 3 * HUGE, HUGE_2M)  # not preserved
    huge(agent, fd).populate(0, 2)
    huge(agent, fd).guest_write(0, 2, GuestContent("vm", 1), 0)
    memfd = agent.task.memfd_create(MFD_HUGETLB | 30 << MFD_HUGE_SHIFT)
    agent.task.ftruncate(memfd, GIB)
    session = agent.session("s")
    agent.task.preserve_fd(session, memfd, 1)
    agent.task.preserve_fd(session, vm, VM)
    agent.task.preserve_fd(session, fd, MEMORY)
    flb = next(flb for flb in kernel.luo.flbs.registered if flb.name == "hugetlb-v1")
    ser = HugetlbSer.unpack(kernel.memory.read(flb.outgoing_data, HugetlbSer.SIZE))
    assert {h.order: h.nr_pages for h in ser.hstates} == {18: 3}
    assert (flb.users, flb.outgoing_count) == (2, 2)
    check(agent)
    fresh = reboot(kernel)
    assert (pool(fresh, 18), pool(fresh)) == ((1, 1, 0), (6, 6, 0))
    after = Agent(fresh)
    session = after.retrieve("s")
    fd, memfd = (after.task.retrieve_fd(session, token) for token in (MEMORY, 1))
    assert pool(fresh, 18) == (4, 1, 0)
    for index, pfn, nr in huge(after, fd).hugetlb.folios.runs():
        for page in (0, (nr << 18) - 1):
            content = GuestContent("vm", 1).page((index << 18) + page)
            assert fresh.memory.page(pfn + page) == content
    check(after)
    after.task.close(session)
    after.task.close(memfd)
    after.task.close(fd)
    assert pool(fresh, 18) == (4, 4, 0)
    check(after)


def test_a_kernel_without_guest_memfd_cannot_open_the_device() -> None:
    agent = start()
    vm, fd = guest(agent, HUGE, HUGE_2M)
    session = agent.session("s")
    agent.task.preserve_fd(session, vm, VM)
    agent.task.preserve_fd(session, fd, MEMORY)
    with pytest.raises(IoError):
        Agent(reboot(agent.kernel, "7.3.4+hugetlb"))
