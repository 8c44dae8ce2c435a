"""The border, check by check: what a real 7.3.4 kernel answered to the same calls."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import permutations

import pytest

from kernelmodel.abi.luo import (
    LIVEUPDATE_CREATE_SESSION,
    LIVEUPDATE_RETRIEVE_SESSION,
    LIVEUPDATE_SESSION_FINISH,
    LIVEUPDATE_SESSION_GET_NAME,
    LIVEUPDATE_SESSION_PRESERVE_FD,
    LIVEUPDATE_SESSION_RETRIEVE_FD,
)
from kernelmodel.errors import KernelError
from kernelmodel.fs import NULL_INO, FdTable, UserBuffer, null_file
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.mm.memfd import MFD_ALLOW_SEALING, MFD_HUGETLB
from kernelmodel.syscalls import DEV_LIVEUPDATE, DEV_NULL, Task
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import Agent, power_on, reboot

LAST = (1 << 63) - 1


def answer(call: Callable[[], object]) -> object:
    """What a call returns, or the name of its errno."""
    try:
        return call()
    except KernelError as error:
        return error.name


def named(size: int, name: str) -> bytes:
    return struct.pack("<Ii64s", size, 0, name.encode())


def about_fd(fd: int, token: int) -> bytes:
    return struct.pack("<IiQ", 16, fd, token)


# What cannot be read or written.


def test_a_session_that_cannot_be_answered_for_does_not_exist() -> None:
    agent = Agent(power_on())
    task = agent.task
    assert answer(lambda: task.ioctl(agent.device, LIVEUPDATE_CREATE_SESSION, named(72, "s"))) == (
        "EFAULT"
    )
    assert len(task.files) == 1
    assert agent.session("s") == 1
    validate_kernel(agent.kernel, [task])


def test_a_file_whose_preserving_cannot_be_answered_for_is_preserved() -> None:
    agent = Agent(power_on())
    task, session, fd = agent.task, agent.session("s"), agent.memfd(5000, b"hello")
    preserve = LIVEUPDATE_SESSION_PRESERVE_FD
    assert answer(lambda: task.ioctl(session, preserve, about_fd(fd, 7))) == "EFAULT"
    assert answer(lambda: task.preserve_fd(session, 999, 7)) == "EEXIST"
    assert answer(lambda: task.preserve_fd(session, fd, 8)) == "EBUSY"
    assert answer(lambda: task.ioctl(session, LIVEUPDATE_SESSION_GET_NAME, named(72, ""))) == (
        "EFAULT"
    )
    after = Agent(reboot(agent.kernel))
    fd = after.task.retrieve_fd(after.retrieve("s"), 7)
    assert after.task.pread(fd, 5, 0) == b"hello"


def handed_over(*names: str) -> Agent:
    """An agent after a live update with sessions that hold a file `name` as token 1."""
    agent = Agent(power_on())
    for name in names:
        agent.task.preserve_fd(agent.session(name), agent.memfd(4, name[:4].encode()), 1)
    return Agent(reboot(agent.kernel))


def test_a_session_whose_retrieving_cannot_be_answered_for_is_finished() -> None:
    agent = handed_over("gone", "here")
    waiting = agent.kernel.kho.tags
    before = sum(high - low for low, high, _ in waiting)
    task = agent.task
    arg = named(72, "gone")
    assert answer(lambda: task.ioctl(agent.device, LIVEUPDATE_RETRIEVE_SESSION, arg)) == "EFAULT"
    assert len(task.files) == 1
    # a page of content, its entry, its table, the table's chunk, the session's block of files
    assert sum(high - low for low, high, _ in waiting) == before - 5
    assert answer(lambda: agent.retrieve("gone")) == "ENOENT"
    agent.retrieve("here")
    validate_kernel(agent.kernel, [task])


def test_a_file_whose_retrieving_cannot_be_answered_for_stays_retrieved() -> None:
    agent = handed_over("s")
    task, session = agent.task, agent.retrieve("s")
    fetch = LIVEUPDATE_SESSION_RETRIEVE_FD
    assert answer(lambda: task.ioctl(session, fetch, about_fd(0, 1))) == "EFAULT"
    assert len(task.files) == 2
    (luo_file,) = agent.kernel.luo.sessions.incoming[0].file_set.files
    assert luo_file.retrieve_status == 1
    assert luo_file.file is not None
    assert luo_file.file.f_count == 1
    fd = task.retrieve_fd(session, 1)
    assert task.files.fget(fd) is luo_file.file
    validate_kernel(agent.kernel, [task])


def test_finishing_that_cannot_be_answered_for_is_done() -> None:
    agent = handed_over("s")
    session = agent.retrieve("s")
    arg = struct.pack("<II", 8, 0)
    assert answer(lambda: agent.task.ioctl(session, LIVEUPDATE_SESSION_FINISH, arg)) == "EFAULT"
    assert answer(lambda: agent.task.retrieve_fd(session, 1)) == "ENOENT"
    assert answer(lambda: agent.task.ioctl(session, LIVEUPDATE_SESSION_FINISH, arg)) == "EFAULT"
    validate_kernel(agent.kernel, [agent.task])


def test_arguments_that_end_too_early() -> None:
    agent = Agent(power_on())
    session = agent.session("s")
    create, wrong, zeroes = LIVEUPDATE_CREATE_SESSION, 0x4008BA00, named(80, "edge") + bytes(4)
    table: list[tuple[int, int, UserBuffer, object]] = [
        (agent.device, 0xBA7F, b"", "EINVAL"),  # the number before the argument
        (session, 0x5451, b"", 0),  # FIOCLEX, as of any file
        (agent.device, create, b"", "EFAULT"),
        (agent.device, wrong, b"", "EFAULT"),  # the size before the encoding
        (session, LIVEUPDATE_SESSION_FINISH, b"", "EFAULT"),
        (session, LIVEUPDATE_SESSION_FINISH, struct.pack("<I", 4), "EINVAL"),  # direction
        (session, LIVEUPDATE_SESSION_PRESERVE_FD, struct.pack("<I", 4), "EINVAL"),  # size
        (session, LIVEUPDATE_SESSION_PRESERVE_FD, struct.pack("<I", 16), "EFAULT"),
        (agent.device, create, bytearray(named(72, "edge")[:40]), "EFAULT"),
        (agent.device, create, bytearray(zeroes), "EFAULT"),
        (agent.device, create, bytearray(zeroes[:73] + b"\1" + zeroes[74:]), "E2BIG"),
        (agent.device, create, bytearray(named(1 << 20, "long") + bytes((1 << 20) - 72)), 0),
    ]
    for fd, cmd, arg, wanted in table:
        got = answer(lambda fd=fd, cmd=cmd, arg=arg: agent.task.ioctl(fd, cmd, arg))  # type: ignore[misc]
        assert got == wanted, (hex(cmd), len(arg))


# No descriptor left.


def test_what_is_looked_at_before_the_limit_of_descriptors() -> None:
    agent = Agent(power_on())
    task, session = agent.task, agent.session("s")
    task.files.limit = len(task.files)
    table: list[tuple[Callable[[], object], str]] = [
        (lambda: task.open("/nothing"), "EMFILE"),
        (lambda: task.open(DEV_LIVEUPDATE), "EMFILE"),  # although it is in use
        (task.open_tmpfs, "EMFILE"),
        (lambda: task.memfd_create(0x800), "EINVAL"),
        (lambda: task.memfd_create(MFD_HUGETLB | 16 << 26), "EMFILE"),
        (task.memfd_create, "EMFILE"),
        (lambda: task.dup(999), "EBADF"),
        (lambda: task.dup(session), "EMFILE"),
        (lambda: task.create_session(agent.device, ""), "EMFILE"),
        (lambda: task.create_session(agent.device, "s"), "EMFILE"),
        (
            lambda: task.ioctl(agent.device, LIVEUPDATE_CREATE_SESSION, bytearray(named(71, "s"))),
            "EINVAL",
        ),
        (lambda: task.retrieve_session(agent.device, "nope"), "EMFILE"),
        (lambda: task.retrieve_fd(session, 1), "EINVAL"),  # direction
        (lambda: task.preserve_fd(session, 999, 1), "EBADF"),
    ]
    for call, wanted in table:
        assert answer(call) == wanted
    validate_kernel(agent.kernel, [task])


def test_no_descriptor_for_what_is_retrieved_leaves_it_for_later() -> None:
    agent = handed_over("s")
    task = agent.task
    task.files.limit = 1
    assert answer(lambda: agent.retrieve("s")) == "EMFILE"
    task.files.limit = 2
    session = agent.retrieve("s")
    for token in (1, 99):
        assert answer(lambda token=token: task.retrieve_fd(session, token)) == "EMFILE"  # type: ignore[misc]
    assert answer(lambda: agent.retrieve("s")) == "EMFILE"
    task.files.limit = 3
    assert answer(lambda: agent.retrieve("s")) == "EINVAL"
    assert task.retrieve_fd(session, 1) == 2


@pytest.mark.parametrize("room", [True, False])
def test_a_file_is_retrieved_into_the_process_that_a_session_is_lent_to(room: bool) -> None:
    agent = handed_over("s")
    mine, other = agent.task, Task(agent.kernel, "vmm")
    other.open(DEV_NULL)
    other.files.limit = 2 if room else 1
    session = mine.files.fget(agent.retrieve("s"))
    assert answer(lambda: other.retrieve_from(session, 1)) == (1 if room else "EMFILE")
    assert (len(mine.files), len(other.files)) == (2, 1 + room)
    if room:
        assert other.files.fget(1).f_count == 2  # the session's, and the other process's
        assert answer(lambda: other.preserve_in(session, 1, 2)) == "EINVAL"
    validate_kernel(agent.kernel, [mine, other])


# Every call on every kind of file.

_COLUMNS = "session device null closed memfd"
_MATRIX = """
pread-nothing       ESPIPE     EINVAL     b''        EBADF      b''
pread               ESPIPE     EINVAL     b''        EBADF      b'hell'
pread-negative      EINVAL     EINVAL     EINVAL     EINVAL     EINVAL
pread-beyond        ESPIPE     EINVAL     EINVAL     EBADF      EINVAL
pwrite              ESPIPE     EINVAL     1          EBADF      1
pwrite-nothing      ESPIPE     EINVAL     0          EBADF      0
pwrite-negative     EINVAL     EINVAL     EINVAL     EINVAL     EINVAL
pwrite-beyond       ESPIPE     EINVAL     EINVAL     EBADF      EINVAL
pwrite-nothing-last ESPIPE     EINVAL     0          EBADF      0
lseek               ESPIPE     ESPIPE     0          EBADF      3
lseek-negative      ESPIPE     ESPIPE     0          EBADF      EINVAL
lseek-cur           ESPIPE     ESPIPE     0          EBADF      3
ftruncate           EINVAL     EINVAL     EINVAL     EBADF      None
ftruncate-negative  EINVAL     EINVAL     EINVAL     EINVAL     EINVAL
fallocate           ENODEV     ENODEV     ENODEV     EBADF      EPERM
fallocate-mode      EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EBADF      EOPNOTSUPP
fallocate-nothing   EINVAL     EINVAL     EINVAL     EBADF      EINVAL
get_seals           EINVAL     EINVAL     EINVAL     EBADF      0
add_seals-unknown   EINVAL     EINVAL     EINVAL     EBADF      EINVAL
add_seals-none      EINVAL     EINVAL     EINVAL     EBADF      None
ioctl-create        EINVAL     0          ENOTTY     EBADF      ENOTTY
ioctl-other         EINVAL     EINVAL     ENOTTY     EBADF      ENOTTY
"""


def _call(task: Task, name: str, fd: int) -> Callable[[], object]:
    calls: dict[str, Callable[[], object]] = {
        "pread-nothing": lambda: task.pread(fd, 0, 0),
        "pread": lambda: task.pread(fd, 4, 0),
        "pread-negative": lambda: task.pread(fd, 4, -1),
        "pread-beyond": lambda: task.pread(fd, 2, LAST),
        "pwrite": lambda: task.pwrite(fd, b"h", 0),
        "pwrite-nothing": lambda: task.pwrite(fd, b"", 0),
        "pwrite-negative": lambda: task.pwrite(fd, b"x", -1),
        "pwrite-beyond": lambda: task.pwrite(fd, b"x", LAST),
        "pwrite-nothing-last": lambda: task.pwrite(fd, b"", LAST),
        "lseek": lambda: task.lseek(fd, 3),
        "lseek-negative": lambda: task.lseek(fd, -1),
        "lseek-cur": lambda: task.lseek_cur(fd),
        "ftruncate": lambda: task.ftruncate(fd, 5000),
        "ftruncate-negative": lambda: task.ftruncate(fd, -1),
        "fallocate": lambda: task.fallocate(fd, 0, 0, 1),
        "fallocate-mode": lambda: task.fallocate(fd, 0x1000, 0, 1),
        "fallocate-nothing": lambda: task.fallocate(fd, 0, 0, 0),
        "get_seals": lambda: task.get_seals(fd),
        "add_seals-unknown": lambda: task.add_seals(fd, 0x40),
        "add_seals-none": lambda: task.add_seals(fd, 0),
        "ioctl-create": lambda: task.ioctl(
            fd, LIVEUPDATE_CREATE_SESSION, bytearray(named(72, "q"))
        ),
        "ioctl-other": lambda: task.ioctl(fd, 0x1234, bytearray(named(72, "q"))),
    }
    return calls[name]


@pytest.mark.parametrize("row", _MATRIX.split("\n")[1:-1], ids=lambda row: row.split()[0])
def test_each_call_on_each_kind_of_file(row: str) -> None:
    """The memfd is preserved; the session is an outgoing one."""
    agent = Agent(power_on())
    task, session = agent.task, agent.session("s")
    memfd = agent.memfd(5000, b"hello", MFD_ALLOW_SEALING)
    task.preserve_fd(session, memfd, 1)
    task.lseek(memfd, 3)
    files = [session, agent.device, task.open(DEV_NULL), 999, memfd]
    name, *wanted = row.split()
    for kind, fd, expected in zip(_COLUMNS.split(), files, wanted, strict=True):
        assert str(answer(_call(task, name, fd))) == expected, kind


@pytest.mark.parametrize("token", [-1, 1 << 64])
def test_a_token_that_no_structure_has_room_for_does_not_reach_the_kernel(token: int) -> None:
    agent = Agent(power_on())
    task, session = agent.task, agent.session("s")
    with pytest.raises(struct.error):
        task.preserve_fd(session, task.memfd_create(), token)
    agent = Agent(reboot(agent.kernel))
    task = agent.task
    with pytest.raises(struct.error):
        task.retrieve_fd(task.retrieve_session(agent.device, "s"), token)


def test_what_cannot_be_preserved() -> None:
    agent = Agent(power_on())
    task, session = agent.task, agent.session("s")
    for fd, wanted in [(session, "ENOENT"), (agent.device, "ENOENT"), (-1, "EBADF")]:
        assert answer(lambda fd=fd: task.preserve_fd(session, fd, 1)) == wanted  # type: ignore[misc]
    huge = agent.memfd((1 << 32) * PAGE_SIZE)
    assert answer(lambda: task.preserve_fd(session, huge, 1)) == "EFBIG"
    task.ftruncate(huge, 100)  # not frozen


def test_an_empty_file_is_frozen_and_can_still_be_sealed_against_writing() -> None:
    agent = Agent(power_on())
    task, session = agent.task, agent.session("s")
    empty = agent.memfd(0, flags=MFD_ALLOW_SEALING)
    task.preserve_fd(session, empty, 24)
    table: list[tuple[Callable[[], object], object]] = [
        (lambda: task.ftruncate(empty, 1), "EPERM"),
        (lambda: task.pwrite(empty, b"", 0), 0),
        (lambda: task.pwrite(empty, b"x", 0), "EPERM"),
        (lambda: task.pwrite(empty, b"", 9999), 0),
        (lambda: task.fallocate(empty, 0, 0, 1), "EPERM"),
        (lambda: task.add_seals(empty, 0x08), None),
    ]
    for call, wanted in table:
        assert answer(call) == wanted
    after = Agent(reboot(agent.kernel))
    fd = after.task.retrieve_fd(after.retrieve("s"), 24)
    assert (after.task.pread(fd, 10, 0), after.task.get_seals(fd)) == (b"", 0)


def test_a_file_that_was_opened_for_reading_comes_back_writable() -> None:
    agent = Agent(power_on())
    task = agent.task
    fd = agent.memfd(PAGE_SIZE, b"text", MFD_ALLOW_SEALING)
    task.files.fget(fd).writable = False
    for seals in (0x02, 0x40):  # the mode before the seals
        assert answer(lambda seals=seals: task.add_seals(fd, seals)) == "EPERM"  # type: ignore[misc]
    task.preserve_fd(agent.session("s"), fd, 22)
    task.lseek(fd, 77)
    after = Agent(reboot(agent.kernel))
    fd = after.task.retrieve_fd(after.retrieve("s"), 22)
    assert after.task.files.fget(fd).writable
    assert after.task.lseek_cur(fd) == 77
    assert after.task.pwrite(fd, b"new", 0) == 3


def test_a_descriptor_is_always_the_lowest_free_number() -> None:
    """Whatever was closed before, in whatever order."""
    for closed in permutations(range(5), 3):
        table = FdTable()
        for _ in range(5):
            table.install_new(lambda: null_file(NULL_INO))
        for fd in closed:
            table.close(fd)
        expected = [*sorted(closed), 5, 6]
        fds = [table.install_new(lambda: null_file(NULL_INO)) for _ in expected]
        assert fds == expected
        table.close(3)
        assert table.install_new(lambda: null_file(NULL_INO)) == 3
