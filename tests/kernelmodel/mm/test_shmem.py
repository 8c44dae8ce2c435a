"""tmpfs files against a plain list of bytes, and what seals and freezing refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernelmodel.errors import (
    BadFileDescriptor,
    IllegalSeek,
    InvalidArgument,
    KernelError,
    NoDevice,
    NoMemory,
    NotPermitted,
    NotSupported,
    NotTty,
)
from kernelmodel.kernel import Kernel
from kernelmodel.memory import GIB, MIB, PAGE_SIZE, GuestContent
from kernelmodel.mm.memfd import MFD_ALLOW_SEALING, MFD_EXEC, MFD_HUGETLB, MFD_NOEXEC_SEAL
from kernelmodel.mm.shmem import ShmemInode
from kernelmodel.syscalls import DEV_LIVEUPDATE, DEV_NULL, Task
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import power_on

EDGES = st.sampled_from([0, 1, 4095, 4096, 4097, 8192, 10_000, 2 * MIB - 1, 2 * MIB])
CHANGES = st.lists(
    st.tuples(st.sampled_from(["write", "truncate", "fallocate", "keep", "punch"]), EDGES, EDGES),
    max_size=12,
)


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return power_on()


@settings(deadline=None, max_examples=60)
@given(changes=CHANGES)
@example(changes=[("write", 0, 8192), ("truncate", 4097, 0), ("truncate", 8192, 0)])
def test_a_file_holds_what_was_written(kernel: Kernel, changes: list[tuple[str, int, int]]) -> None:
    task = Task(kernel, "t")
    fd = task.memfd_create()
    expected = bytearray()
    for n, (change, offset, size) in enumerate(changes, 1):
        end = offset + size
        if change == "write":
            assert task.pwrite(fd, bytes([n]) * size, offset) == size
            if size:
                expected.extend(bytes(max(0, end - len(expected))))
                expected[offset:end] = bytes([n]) * size
        elif change == "truncate":
            task.ftruncate(fd, offset)
            del expected[offset:]
            expected.extend(bytes(offset - len(expected)))
        elif size == 0:
            with pytest.raises(InvalidArgument):
                task.fallocate(fd, 0, offset, size)
        elif change == "punch":
            task.fallocate(fd, 3, offset, size)
            hole = max(0, min(end, len(expected)) - offset)
            expected[offset : offset + hole] = bytes(hole)
        else:
            task.fallocate(fd, 1 if change == "keep" else 0, offset, size)
            if change == "fallocate":
                expected.extend(bytes(max(0, end - len(expected))))
        assert task.pread(fd, 1 << 30, 0) == bytes(expected)
        assert task.pread(fd, 100, offset) == bytes(expected[offset : offset + 100])
    validate_kernel(kernel, [task])
    task.exit()
    validate_kernel(kernel, [])


def sealed(task: Task, seals: int, size: int = 2 * PAGE_SIZE) -> int:
    fd = task.memfd_create(MFD_ALLOW_SEALING)
    task.ftruncate(fd, size)
    task.add_seals(fd, seals)
    return fd


@pytest.mark.parametrize(
    ("seals", "refused"),
    [
        (0x01, {"seal"}),
        (0x02, {"shrink"}),
        (0x04, {"grow", "append", "extend", "keep"}),
        (0x08, {"write", "append", "punch"}),
        (0x10, {"write", "append", "punch"}),
    ],
)
def test_each_seal_refuses_what_it_is_for(kernel: Kernel, seals: int, refused: set[str]) -> None:
    task = Task(kernel, "t")
    operations: dict[str, Callable[[int], object]] = {
        "shrink": lambda fd: task.ftruncate(fd, PAGE_SIZE),
        "grow": lambda fd: task.ftruncate(fd, MIB),
        "extend": lambda fd: task.fallocate(fd, 0, 0, MIB),
        "append": lambda fd: task.pwrite(fd, b"x", MIB),
        "write": lambda fd: task.pwrite(fd, b"x", 0),
        "punch": lambda fd: task.fallocate(fd, 3, 0, PAGE_SIZE),
        "keep": lambda fd: task.fallocate(fd, 1, 0, MIB),
        "same size": lambda fd: task.ftruncate(fd, 2 * PAGE_SIZE),
        "seal": lambda fd: task.add_seals(fd, 0x02),
    }
    for name, operation in operations.items():
        fd = sealed(task, seals)
        if name in refused:
            with pytest.raises(NotPermitted):
                operation(fd)
        else:
            operation(fd)
    task.exit()


def test_seals_that_do_not_exist_and_files_that_have_none(kernel: Kernel) -> None:
    task = Task(kernel, "t")
    with pytest.raises(InvalidArgument):
        sealed(task, 0x40)
    null = task.open(DEV_NULL)
    for call in (lambda: task.add_seals(null, 1), lambda: task.get_seals(null)):
        with pytest.raises(InvalidArgument):
            call()
    plain = task.open_tmpfs()
    assert task.get_seals(plain) == 1
    with pytest.raises(NotPermitted):
        task.add_seals(plain, 2)
    fd = task.memfd_create()
    task.files.fget(fd).writable = False
    with pytest.raises(NotPermitted):
        task.add_seals(fd, 2)
    task.exit()


def test_sealing_an_executable_file_against_a_change_of_mode_seals_its_content(
    kernel: Kernel,
) -> None:
    task = Task(kernel, "t")
    fd = sealed(task, 0x20)
    assert task.get_seals(fd) == 0x3E
    fd = task.memfd_create(MFD_NOEXEC_SEAL)
    assert task.get_seals(fd) == 0x20
    task.pwrite(fd, b"x", 0)
    task.exit()


@pytest.mark.parametrize("flags", [0x20, MFD_EXEC | MFD_NOEXEC_SEAL, 21 << 26])
def test_flags_that_make_no_sense(kernel: Kernel, flags: int) -> None:
    with pytest.raises(InvalidArgument):
        Task(kernel, "t").memfd_create(flags)


def test_a_huge_page_size_that_is_not_there(kernel: Kernel) -> None:
    with pytest.raises(NoDevice):
        Task(kernel, "t").memfd_create(MFD_HUGETLB | 16 << 26)


def test_fallocate_takes_back_what_it_did_when_memory_runs_out(kernel: Kernel) -> None:
    """Seen on a real kernel, as are the next two: what was there before stays, nothing else."""
    task = Task(kernel, "t")
    fd = task.memfd_create()
    task.pwrite(fd, b"kept", MIB)
    free = kernel.page_alloc.nr_free_pages()
    for mode in (0, 1):
        with pytest.raises(NoMemory):
            task.fallocate(fd, mode, 0, GIB)
    assert kernel.page_alloc.nr_free_pages() == free
    assert task.pread(fd, GIB, 0) == bytes(MIB) + b"kept"
    validate_kernel(kernel, [task])
    task.exit()
    validate_kernel(kernel, [])


def hog(kernel: Kernel, task: Task, left: int) -> None:
    """A file takes all pages that there are for files, but so many."""
    fd = task.memfd_create()
    inode, free = inode_of(task, fd), kernel.page_alloc.nr_free_pages()
    while free:
        try:
            task.fallocate(fd, 0, inode.size, free * PAGE_SIZE)
        except NoMemory:
            free //= 2
    task.ftruncate(fd, inode.size - left * PAGE_SIZE)


def inode_of(task: Task, fd: int) -> ShmemInode:
    inode = task.files.fget(fd).inode
    assert isinstance(inode, ShmemInode)
    return inode


def test_a_write_stops_at_the_page_that_there_is_no_memory_for() -> None:
    kernel = power_on()
    task = Task(kernel, "t")
    hog(kernel, task, 30)
    fd = task.memfd_create()
    done = task.pwrite(fd, b"x" * MIB, 100)
    assert 0 < done < MIB
    assert (100 + done) % PAGE_SIZE == 0
    assert inode_of(task, fd).size == 100 + done
    with pytest.raises(NoMemory):
        task.pwrite(fd, b"x", 100 + done)
    assert task.pread(fd, MIB, 0) == bytes(100) + b"x" * done
    validate_kernel(kernel, [task])


def test_a_preserve_that_runs_out_of_memory_leaves_the_holes_that_it_filled() -> None:
    kernel = power_on()
    task = Task(kernel, "t")
    session = task.create_session(task.open(DEV_LIVEUPDATE), "s")
    hog(kernel, task, 40)
    fd = task.memfd_create()
    task.ftruncate(fd, 100 * PAGE_SIZE)
    task.pwrite(fd, b"x", 90 * PAGE_SIZE)
    with pytest.raises(NoMemory):
        task.preserve_fd(session, fd, 1)
    first, *_ = inode_of(task, fd).extents(0, 100)
    assert first[0] == 0
    task.ftruncate(fd, 50 * PAGE_SIZE)  # it is not frozen
    assert task.pread(fd, MIB, 0) == bytes(50 * PAGE_SIZE)
    validate_kernel(kernel, [task])


def test_fallocated_pages_read_as_zero_whatever_lay_there(kernel: Kernel) -> None:
    task = Task(kernel, "t")
    dirty = task.memfd_create()
    task.pwrite(dirty, b"\xff" * MIB, 0)
    task.close(dirty)
    fd = task.memfd_create()
    task.fallocate(fd, 0, 0, MIB)
    assert task.pread(fd, MIB, 0) == bytes(MIB)
    task.pwrite(fd, b"x", 5)
    assert task.pread(fd, MIB, 0) == bytes(5) + b"x" + bytes(MIB - 6)
    task.exit()


def test_stores_through_a_mapping_and_reads_agree(kernel: Kernel) -> None:
    task = Task(kernel, "t")
    fd = task.memfd_create()
    task.ftruncate(fd, 8 * PAGE_SIZE)
    inode = task.files.fget(fd).inode
    assert isinstance(inode, ShmemInode)
    inode.preallocate(0)
    inode.guest_write(2, 4, GuestContent("vm", 1), 100)
    assert task.pread(fd, PAGE_SIZE, 3 * PAGE_SIZE) == GuestContent("vm", 1).page(101)
    task.pwrite(fd, b"!", 3 * PAGE_SIZE)
    changed = b"!" + GuestContent("vm", 1).page(101)[1:]
    assert task.pread(fd, PAGE_SIZE, 3 * PAGE_SIZE) == changed
    assert task.pread(fd, PAGE_SIZE, 4 * PAGE_SIZE) == GuestContent("vm", 1).page(102)
    task.exit()


# The border.


def test_what_is_no_file_of_memory_refuses_in_its_own_way(kernel: Kernel) -> None:
    task = Task(kernel, "t")
    null, device = task.open(DEV_NULL), task.open(DEV_LIVEUPDATE)
    assert task.pwrite(null, b"abc", 7) == 3
    assert task.pread(null, 10, 0) == b""
    assert task.lseek(null, 99) == task.lseek(null, -1) == 0
    refusals: list[tuple[Callable[[], object], type[KernelError]]] = [
        (lambda: task.fallocate(null, 0, 0, 1), NoDevice),
        (lambda: task.ftruncate(null, 0), InvalidArgument),
        (lambda: task.lseek(device, 0), IllegalSeek),
        (lambda: task.lseek_cur(device), IllegalSeek),
        (lambda: task.ioctl(null, 0xBA00, bytearray(72)), NotTty),
        (lambda: task.pwrite(null, b"", -1), InvalidArgument),
        (lambda: task.ftruncate(null, -1), InvalidArgument),
        (lambda: task.close(77), BadFileDescriptor),
        (lambda: task.dup(77), BadFileDescriptor),
        (lambda: task.ioctl(77, 0, bytearray(4)), BadFileDescriptor),
    ]
    for call, wanted in refusals:
        with pytest.raises(wanted):
            call()
    task.exit()
    assert len(task.files) == 0


def test_descriptors_are_the_lowest_free_numbers(kernel: Kernel) -> None:
    task = Task(kernel, "t")
    fds = [task.memfd_create() for _ in range(4)]
    assert fds == [0, 1, 2, 3]
    task.close(1)
    assert task.dup(0) == 1
    task.pwrite(1, b"shared", 0)
    task.lseek(1, 3)
    assert task.lseek_cur(0) == 3
    task.close(0)
    assert task.pread(1, 6, 0) == b"shared"
    task.exit()


def test_a_kernel_error_names_its_errno() -> None:
    error = NoMemory("no page", order=3)
    assert isinstance(error, KernelError)
    assert str(error) == "ENOMEM: no page (order=3)"
    assert NotSupported("x").name == "EOPNOTSUPP"
