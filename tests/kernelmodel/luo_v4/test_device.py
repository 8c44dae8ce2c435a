"""The ioctls as a process makes them: numbers, structures, and how they are decoded."""

from __future__ import annotations

import struct

import pytest

from kernelmodel.abi import luo, luo_v4
from kernelmodel.errors import ERRNO_CLASSES, BadAddress, TooManyFiles
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task
from tests.kernelmodel.luo_v4.hosts import NORMAL, PREPARED, Agent, kernel_in, luo_of, power_on

GET_STATE, SET_EVENT, CREATE, RETRIEVE = 0xBA00, 0xBA01, 0xBA02, 0xBA03
PRESERVE_FD, UNPRESERVE_FD, RESTORE_FD = 0xBA40, 0xBA41, 0xBA42
SESSION_GET_STATE, SESSION_SET_EVENT = 0xBA43, 0xBA44


def test_an_update_by_raw_numbers() -> None:
    kernel = power_on()
    task = Task(kernel, "raw")
    device = task.open(DEV_LIVEUPDATE)
    state = bytearray(struct.pack("<II", 8, 0xFFFF))
    task.ioctl(device, GET_STATE, state)
    assert state == struct.pack("<II", 8, 1)
    create = bytearray(struct.pack("<Ii56s", 64, -1, b"vm-1"))
    task.ioctl(device, CREATE, create)
    session = struct.unpack_from("<i", create, 4)[0]
    memfd = task.memfd_create()
    task.ioctl(session, PRESERVE_FD, bytearray(struct.pack("<IiQ", 16, memfd, 0xAB)))
    task.ioctl(session, UNPRESERVE_FD, bytearray(struct.pack("<IIQ", 16, 0, 0xAB)))
    task.ioctl(session, PRESERVE_FD, bytearray(struct.pack("<IiQ", 16, memfd, 0xCD)))
    task.ioctl(session, SESSION_SET_EVENT, bytearray(struct.pack("<II", 8, 0)))
    task.ioctl(session, SESSION_GET_STATE, state)
    assert state[4:] == b"\2\0\0\0"
    task.ioctl(session, SESSION_SET_EVENT, bytearray(struct.pack("<II", 8, 3)))
    task.ioctl(device, SET_EVENT, bytearray(struct.pack("<II", 8, 0)))
    assert luo_of(kernel).state is PREPARED
    task.ioctl(device, SET_EVENT, bytearray(struct.pack("<II", 8, 3)))
    assert luo_of(kernel).state is NORMAL


def test_decoding_looks_at_number_encoding_size_and_trailing_bytes() -> None:
    agent = Agent(power_on())
    session = agent.create_session("s")
    table = [
        (agent.device, 0xBA7F, 8, {}, "EINVAL"),
        (agent.device, 0x4008BA00, 4, {}, "ENOTTY"),  # the encoding before the size
        (agent.device, GET_STATE, 7, {}, "EINVAL"),
        (agent.device, GET_STATE, 16, {15: 1}, "E2BIG"),
        (agent.device, GET_STATE, 16, {}, ""),  # longer, but only zeroes behind
        (agent.device, SET_EVENT, 4, {}, "EINVAL"),
        (agent.device, CREATE, 63, {8: 65}, "EINVAL"),
        (agent.device, CREATE, 64, {8: 65}, ""),
        (agent.device, RETRIEVE, 64, {8: 65}, "EAGAIN"),
        (agent.device, PRESERVE_FD, 16, {}, "EINVAL"),  # a session's
        (session, PRESERVE_FD, 15, {}, "EINVAL"),
        (session, UNPRESERVE_FD, 16, {4: 1}, "EINVAL"),
        (session, UNPRESERVE_FD, 16, {}, "ENOENT"),
        (session, RESTORE_FD, 16, {}, "EBUSY"),
        (session, SESSION_GET_STATE, 8, {}, ""),
        (session, SESSION_SET_EVENT, 8, {4: 7}, "EOPNOTSUPP"),
        (session, CREATE, 64, {}, "EINVAL"),  # the device's
    ]
    for fd, cmd, size, pokes, answer in table:
        arg = bytearray(256)
        struct.pack_into("<I", arg, 0, size)
        for at, byte in pokes.items():
            arg[at] = byte
        if not answer:
            agent.task.ioctl(fd, cmd, arg)
            continue
        with pytest.raises(ERRNO_CLASSES[answer]):
            agent.task.ioctl(fd, cmd, arg)


@pytest.mark.parametrize(
    "arg", [bytearray(3), bytearray(struct.pack("<I", 8)), bytes([8] + [0] * 7)]
)
def test_memory_that_is_not_there(arg: bytes | bytearray) -> None:
    agent = Agent(power_on())
    with pytest.raises(BadAddress):
        agent.task.ioctl(agent.device, GET_STATE, arg)


def test_numbers_of_the_merged_luo_mean_something_else_here() -> None:
    assert luo.LIVEUPDATE_CREATE_SESSION == luo_v4.LIVEUPDATE_IOCTL_GET_STATE
    assert luo.LIVEUPDATE_SESSION_FINISH == luo_v4.LIVEUPDATE_SESSION_RESTORE_FD
    agent = Agent(power_on())
    with pytest.raises(ERRNO_CLASSES["E2BIG"]):  # the name is beyond a GET_STATE
        agent.task.create_session(agent.device, "vm")


def test_no_session_is_made_without_a_number_for_it() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.task.files.limit = len(agent.task.files)
    with pytest.raises(TooManyFiles):
        agent.create_session("s")
    assert luo_of(kernel).sessions.sessions == []


def test_no_file_is_restored_without_a_number_for_it() -> None:
    _, agent, session = kernel_in(luo_v4.LiveupdateState.UPDATED)
    limit = agent.task.files.limit
    agent.task.files.limit = len(agent.task.files)
    with pytest.raises(TooManyFiles):
        agent.restore_fd(session, 1)
    agent.task.files.limit = limit
    agent.restore_fd(session, 1)
