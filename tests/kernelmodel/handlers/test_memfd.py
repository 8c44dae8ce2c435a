"""Plain memfds across kexec: what is refused and undone, what survives, what is freed."""

from __future__ import annotations

import struct

import pytest

from kernelmodel.errors import (
    Busy,
    Exists,
    FileTooBig,
    InvalidArgument,
    IoError,
    KernelPanic,
    NoEntry,
    NoMemory,
    NotPermitted,
    NotSupported,
)
from kernelmodel.kernel import Kernel
from kernelmodel.memory import GIB, MIB, PAGE_SHIFT, PAGE_SIZE, GuestContent
from kernelmodel.mm.memfd import MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL
from kernelmodel.mm.shmem import PG_DIRTY, PG_UPTODATE, ShmemInode
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import Agent, power_on, reboot

KEEP_SIZE = 1


def inode_of(agent: Agent, fd: int) -> ShmemInode:
    inode = agent.task.files.fget(fd).inode
    assert isinstance(inode, ShmemInode)
    return inode


def waiting(kernel: Kernel) -> int:
    """Pages that were handed over and not restored yet."""
    return sum(high - low for low, high, _ in kernel.kho.tags)


def files_entry(kernel: Kernel) -> int:
    """Address of the only preserved file's entry."""
    ((_, _, luo_file),) = [
        (0, 0, luo_file)
        for session in kernel.luo.sessions.outgoing
        for luo_file in session.file_set.files
    ]
    return luo_file.data


def table_of(kernel: Kernel) -> int:
    """Address of the folio table's first page."""
    return kernel.memory.u64(kernel.memory.u64(files_entry(kernel) + 32) + 8)


def one_file(size: int = 3 * PAGE_SIZE) -> tuple[Kernel, Agent]:
    """A kernel with one preserved file, pages 1, 2, 3, …"""
    kernel = power_on()
    agent = Agent(kernel)
    content = b"".join(bytes([n % 255 + 1]) * PAGE_SIZE for n in range(-(-size // PAGE_SIZE)))[
        :size
    ]
    fd = agent.memfd(size, content, MFD_ALLOW_SEALING)
    agent.task.preserve_fd(agent.session("s"), fd, 1)
    return kernel, agent


# Refusals.


@pytest.mark.parametrize("refused", ["seals", "size", "memory"])
def test_a_refused_preserve_is_undone(refused: str) -> None:
    kernel = power_on()
    agent = Agent(kernel)
    session, fd = agent.session("s"), agent.memfd(4 * PAGE_SIZE)
    inode = inode_of(agent, fd)
    wanted = {"seals": NotSupported, "size": FileTooBig, "memory": NoMemory}[refused]
    if refused == "seals":
        inode.seals = 0x41
    elif refused == "size":
        agent.task.ftruncate(fd, (1 << 32) * PAGE_SIZE)
    else:
        agent.task.ftruncate(fd, GIB)
    free, keys = kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys
    with pytest.raises(wanted):
        agent.task.preserve_fd(session, fd, 1)
    validate_kernel(kernel, [agent.task])
    agent.task.ftruncate(fd, PAGE_SIZE)
    filled = int(refused == "memory")  # holes that were filled before memory ran out stay filled
    assert (kernel.page_alloc.nr_free_pages(), kernel.kho.preserved_keys) == (free - filled, keys)
    if refused != "seals":
        agent.task.preserve_fd(session, fd, 1)


def test_files_with_a_name_are_not_taken() -> None:
    agent = Agent(power_on())
    session = agent.session("s")
    with pytest.raises(NoEntry):
        agent.task.preserve_fd(session, agent.task.open_tmpfs(), 1)
    agent.task.preserve_fd(session, agent.task.open_tmpfs(linked=False), 1)


def test_every_descriptor_of_a_file_is_the_same_object() -> None:
    agent = Agent(power_on())
    one, two = agent.session("one"), agent.session("two")
    fd = agent.memfd(PAGE_SIZE)
    agent.task.preserve_fd(one, fd, 1)
    for session in (one, two):
        with pytest.raises(Busy):
            agent.task.preserve_fd(session, agent.task.dup(fd), 2)
    agent.task.close(one)
    agent.task.preserve_fd(two, fd, 2)


# While it is preserved.


def test_layout_is_frozen_content_is_not_until_the_session_closes() -> None:
    _, agent = one_file(PAGE_SIZE + 100)
    session, fd = 2, 1
    inode = inode_of(agent, fd)
    for refused in (
        lambda: agent.task.ftruncate(fd, 1),
        lambda: agent.task.ftruncate(fd, MIB),
        lambda: agent.task.fallocate(fd, 0, 0, 100),
        lambda: agent.task.fallocate(fd, 3, 0, PAGE_SIZE),
        lambda: agent.task.pwrite(fd, bytes(101), PAGE_SIZE),
        lambda: agent.task.pwrite(fd, b"x", 2 * PAGE_SIZE),
    ):
        with pytest.raises(NotPermitted):
            refused()
    with pytest.raises(NotSupported):
        agent.task.fallocate(fd, 0x40, 0, 100)
    agent.task.ftruncate(fd, inode.size)
    assert agent.task.pwrite(fd, b"new", PAGE_SIZE + 97) == 3
    agent.task.add_seals(fd, 1 << 1)
    for seals in (0x08, 0x20):  # both would seal pinned pages against writing
        with pytest.raises(Busy):
            agent.task.add_seals(fd, seals)
    agent.task.close(session)
    agent.task.ftruncate(fd, MIB)
    agent.task.add_seals(fd, 0x08)


def test_a_write_across_2_mib_stops_at_the_first_refused_piece() -> None:
    _, agent = one_file(2 * MIB)
    assert agent.task.pwrite(1, bytes([9]) * 200, 2 * MIB - 100) == 100
    with pytest.raises(NotPermitted):
        agent.task.pwrite(1, bytes(100), 2 * MIB)


# What survives.


def test_holes_are_filled_and_pages_never_written_are_cleared() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    fd = agent.memfd(6 * PAGE_SIZE)
    agent.task.pwrite(fd, b"two", 2 * PAGE_SIZE)
    agent.task.fallocate(fd, 0, 4 * PAGE_SIZE, PAGE_SIZE)
    inode = inode_of(agent, fd)
    ((_, pfn, _, flags),) = inode.extents(4, 5)
    assert not flags & PG_UPTODATE
    kernel.memory.write(pfn << PAGE_SHIFT, b"what lay there before")
    assert agent.task.pread(fd, PAGE_SIZE, 4 * PAGE_SIZE) == bytes(PAGE_SIZE)
    agent.task.preserve_fd(agent.session("s"), fd, 1)
    assert inode.holes(0, 6) == []
    assert {flags for *_, flags in inode.extents(0, 6)} == {PG_DIRTY | PG_UPTODATE}
    after = Agent(reboot(kernel))
    fd = after.task.retrieve_fd(after.retrieve("s"), 1)
    content = after.task.pread(fd, MIB, 0)
    assert content == bytes(2 * PAGE_SIZE) + b"two".ljust(4 * PAGE_SIZE, b"\0")


def test_pages_beyond_the_size_stay_behind() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    fd = agent.memfd(PAGE_SIZE)
    agent.task.fallocate(fd, KEEP_SIZE, 0, 5 * PAGE_SIZE)
    agent.task.preserve_fd(agent.session("s"), fd, 1)
    assert kernel.memory.u64(files_entry(kernel) + 24) == 1
    after = Agent(reboot(kernel))
    fd = after.task.retrieve_fd(after.retrieve("s"), 1)
    assert len(list(inode_of(after, fd).extents(0, 100))) == 1


@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 70 * PAGE_SIZE])
def test_size_position_and_content_survive(size: int) -> None:
    kernel = power_on()
    agent = Agent(kernel)
    content = bytes(n * 7 % 251 for n in range(size))
    fd = agent.memfd(size, content)
    agent.task.preserve_fd(agent.session("s"), fd, 1 << 63)
    agent.task.lseek(fd, size + 5)
    fresh = reboot(kernel)
    after = Agent(fresh)
    session = after.retrieve("s")
    fd = after.task.retrieve_fd(session, 1 << 63)
    inode = inode_of(after, fd)
    assert (inode.size, after.task.lseek_cur(fd)) == (size, size + 5)
    assert after.task.pread(fd, size + 1, 0) == content
    assert (inode.frozen, inode.pinned) == (False, False)
    after.task.ftruncate(fd, size + 1)  # nothing is frozen any more
    validate_kernel(fresh, [after.task])
    after.task.close(session)
    validate_kernel(fresh, [after.task])
    assert waiting(fresh) == 3
    # and it can be preserved again
    after.task.preserve_fd(after.session("next"), fd, 1)


@pytest.mark.parametrize(
    ("flags", "seals", "survives"),
    [
        (0, 0, 0x01),
        (MFD_ALLOW_SEALING, 0, 0x00),
        (MFD_ALLOW_SEALING, 0x10, 0x10),
        (MFD_ALLOW_SEALING, 0x0F, 0x0F),
        (MFD_NOEXEC_SEAL, 0, 0x3E),  # comes back executable, and sealing that seals everything
        (MFD_NOEXEC_SEAL, 0x01, 0x3F),
    ],
)
def test_seals_survive_as_they_were_when_preserved(flags: int, seals: int, survives: int) -> None:
    kernel = power_on()
    agent = Agent(kernel)
    fd = agent.memfd(PAGE_SIZE, b"text", flags)
    if seals:
        agent.task.add_seals(fd, seals)
    agent.task.preserve_fd(agent.session("s"), fd, 1)
    after = Agent(reboot(kernel))
    fd = after.task.retrieve_fd(after.retrieve("s"), 1)
    assert after.task.get_seals(fd) == survives
    assert after.task.pread(fd, 4, 0) == b"text"
    if survives & 0x18:
        with pytest.raises(NotPermitted):
            after.task.pwrite(fd, b"x", 0)


def test_a_position_no_file_can_have_is_passed_over() -> None:
    kernel, _ = one_file()
    kernel.luo.sessions.outgoing[0].file_set.files[0].file.f_pos = 1 << 63  # type: ignore[union-attr]
    after = Agent(reboot(kernel))
    assert after.task.lseek_cur(after.task.retrieve_fd(after.retrieve("s"), 1)) == 0


def test_pages_in_scratch_move_out_before_they_are_pinned() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    hog = agent.memfd(0)
    # the page allocator gives scratch to movable pages when the rest is used up
    rest = kernel.page_alloc.nr_free_pages() - kernel.page_alloc.nr_free_cma_pages()
    agent.task.fallocate(hog, 0, 0, (rest - 200) * PAGE_SIZE)
    fd = agent.memfd(400 * PAGE_SIZE)
    inode_of(agent, fd).guest_write(0, 400, GuestContent("vm", 1), 0)
    in_scratch = [
        pfn
        for _, pfn, nr, _ in inode_of(agent, fd).extents(0, 400)
        if kernel.kho.scratch_overlap(pfn, nr)
    ]
    assert in_scratch
    session = agent.session("s")
    everything, _ = kernel.page_alloc.alloc_upto(0, 1 << 20)
    with pytest.raises(NoMemory):
        agent.task.preserve_fd(session, fd, 1)  # nowhere to move to
    for pfn, nr in everything:
        kernel.page_alloc.free_run(pfn, nr)
    agent.task.preserve_fd(session, fd, 1)
    assert not any(
        kernel.kho.scratch_overlap(pfn, nr) for _, pfn, nr, _ in inode_of(agent, fd).extents(0, 400)
    )
    validate_kernel(kernel, [agent.task])
    for page in (0, 199, 200, 399):
        expected = GuestContent("vm", 1).page(page)
        assert agent.task.pread(fd, PAGE_SIZE, page * PAGE_SIZE) == expected


def test_a_file_whose_table_fills_whole_chunks() -> None:
    """511 pages of table are 130,816 folios."""
    kernel = power_on(node_bytes=(GIB,))
    agent = Agent(kernel)
    pages = 511 * 256
    fd = agent.memfd(pages * PAGE_SIZE)
    inode_of(agent, fd).guest_write(0, pages, GuestContent("vm", 3), 0)
    extents = [(pfn, nr) for _, pfn, nr, _ in inode_of(agent, fd).extents(0, pages)]
    before = kernel.memory.content_digest(extents)
    agent.task.preserve_fd(agent.session("s"), fd, 1)
    fresh = reboot(kernel)
    after = Agent(fresh)
    session = after.retrieve("s")
    fd = after.task.retrieve_fd(session, 1)
    extents = [(pfn, nr) for _, pfn, nr, _ in inode_of(after, fd).extents(0, pages)]
    assert fresh.memory.content_digest(extents) == before
    after.task.finish_session(session)
    assert waiting(fresh) == 3
    validate_kernel(fresh, [after.task])


# What goes wrong in the next kernel.


def test_finishing_without_retrieving_frees_everything() -> None:
    kernel, _ = one_file()
    fresh = reboot(kernel)
    after = Agent(fresh)
    session = after.retrieve("s")
    assert waiting(fresh) == 3 + 3 + 4  # kept for good; folios; ser, chunk, table, file block
    after.task.finish_session(session)
    assert waiting(fresh) == 3
    assert not fresh.tainted
    validate_kernel(fresh, [after.task])
    with pytest.raises(NoEntry):
        after.task.retrieve_fd(session, 1)


@pytest.mark.parametrize("page", [0, 1, 2])
def test_a_folio_that_was_not_preserved_is_eio_for_ever_and_the_others_are_freed(page: int) -> None:
    kernel, _ = one_file()
    (word,) = struct.unpack("<Q", kernel.memory.read(table_of(kernel) + 16 * page, 8))
    kernel.kho.unpreserve_folios(word & (1 << 52) - 1, 0)
    fresh = reboot(kernel)
    after = Agent(fresh)
    session = after.retrieve("s")
    for _ in range(2):
        with pytest.raises(IoError):
            after.task.retrieve_fd(session, 1)
    after.task.close(session)
    assert waiting(fresh) == 3
    validate_kernel(fresh, [after.task])


@pytest.mark.parametrize("page", [1, 2])
def test_two_folios_at_one_index_are_eexist_and_all_are_freed(page: int) -> None:
    kernel, _ = one_file()
    kernel.memory.write_u64(table_of(kernel) + 16 * page + 8, 0)
    fresh = reboot(kernel)
    after = Agent(fresh)
    session = after.retrieve("s")
    with pytest.raises(Exists):
        after.task.retrieve_fd(session, 1)
    after.task.close(session)
    assert waiting(fresh) == 3
    validate_kernel(fresh, [after.task])


def test_a_table_that_is_lost_leaks_the_folios_until_the_next_kexec() -> None:
    kernel, _ = one_file()
    kernel.kho.unpreserve_folios(table_of(kernel) >> PAGE_SHIFT, 0)
    fresh = reboot(kernel)
    after = Agent(fresh)
    session = after.retrieve("s")
    with pytest.raises(InvalidArgument):
        after.task.retrieve_fd(session, 1)
    after.task.close(session)
    assert waiting(fresh) == 3 + 3 + 1  # the folios, and the chunk that named the table
    assert waiting(reboot(fresh)) == 3


@pytest.mark.parametrize(
    ("offset", "size", "value", "wanted"),
    [
        (16, 4, 0x40, NotSupported),  # unknown seals
        (40, 4, 2, InvalidArgument),  # a table of two pages that has one
        (32, 8, 1 << 50, KernelPanic),  # a chunk beyond memory is read before it is restored
        (24, 8, 257, KernelPanic),  # more entries than the table holds
    ],
)
def test_an_entry_that_makes_no_sense(
    offset: int, size: int, value: int, wanted: type[Exception]
) -> None:
    kernel, _ = one_file()
    kernel.memory.write(files_entry(kernel) + offset, value.to_bytes(size, "little"))
    after = Agent(reboot(kernel))
    session = after.retrieve("s")
    with pytest.raises(wanted):
        after.task.retrieve_fd(session, 1)
    if wanted is not KernelPanic:
        with pytest.raises(wanted):
            after.task.retrieve_fd(session, 1)
        after.task.close(session)


def test_a_release_without_the_handler_cannot_open_the_device() -> None:
    kernel, _ = one_file()
    kernel.luo.handlers[0].compatible = "memfd-v3"
    fresh = reboot(kernel)
    with pytest.raises(IoError):
        Agent(fresh)
    # blocks are given back, the file's memory is not
    assert waiting(fresh) == 3 + 3 + 3
