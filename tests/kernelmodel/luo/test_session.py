"""Sessions: names, lifetimes, and the chain of blocks that they cross kexec in."""

from __future__ import annotations

import struct

import pytest

from kernelmodel.abi.luo import (
    LIVEUPDATE_CREATE_SESSION,
    LIVEUPDATE_SESSION_FINISH,
    LIVEUPDATE_SESSION_GET_NAME,
    LIVEUPDATE_SESSION_PRESERVE_FD,
)
from kernelmodel.errors import (
    ERRNO_CLASSES,
    Busy,
    Exists,
    InvalidArgument,
    IoError,
    KernelError,
    KernelPanic,
    NoEntry,
    NoSpace,
)
from kernelmodel.syscalls import DEV_LIVEUPDATE, Task
from tests.kernelmodel.kernels import CMDLINE, Agent, power_on, reboot, with_toy

PER_BLOCK = 51


@pytest.mark.parametrize("name", ["", "A" * 64])
def test_names_are_1_to_63_bytes(name: str) -> None:
    with pytest.raises(InvalidArgument):
        Agent(power_on()).session(name)


def test_a_name_may_be_given_out_again_once_its_session_is_closed() -> None:
    agent = Agent(power_on())
    session = agent.session("s")
    with pytest.raises(Exists):
        agent.session("s")
    agent.task.close(session)
    agent.session("s")


def test_one_process_has_the_device_and_sessions_outlive_it() -> None:
    agent = Agent(power_on())
    session = agent.session("s")
    other = Task(agent.kernel, "other")
    with pytest.raises(Busy):
        other.open(DEV_LIVEUPDATE)
    passed = agent.task.send_fd(session, other)
    agent.task.exit()
    other.open(DEV_LIVEUPDATE)
    assert other.session_name(passed) == "s"


@pytest.mark.parametrize(("sessions", "blocks"), [(0, 0), (1, 1), (51, 1), (52, 2), (103, 3)])
def test_blocks_follow_the_number_of_sessions(sessions: int, blocks: int) -> None:
    kernel = power_on()
    agent = Agent(kernel)
    keys = kernel.kho.preserved_keys
    fds = [agent.session(f"s{n}") for n in range(sessions)]
    assert kernel.kho.preserved_keys == keys + blocks
    fresh = reboot(kernel)
    after = Agent(fresh)
    for n in range(sessions):
        after.retrieve(f"s{n}")
    assert len(fds) == len(fresh.luo.sessions.incoming)


def test_closing_sessions_gives_blocks_back_to_the_last() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    keys = kernel.kho.preserved_keys
    fds = [agent.session(f"s{n}") for n in range(PER_BLOCK + 1)]
    agent.task.close(fds[0])
    assert kernel.kho.preserved_keys == keys + 1
    for fd in fds[1:]:
        agent.task.close(fd)
    assert kernel.kho.preserved_keys == keys


def test_no_room_for_another_block(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(power_on())
    monkeypatch.setattr("kernelmodel.kho.block.KHO_MAX_BLOCKS", 1)
    for n in range(PER_BLOCK):
        agent.session(f"s{n}")
    with pytest.raises(NoSpace):
        agent.session("one more")


def test_a_refused_duplicate_at_51_leaves_an_empty_block_that_panics_the_next_kernel() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    fds = [agent.session(f"s{n}") for n in range(PER_BLOCK)]
    with pytest.raises(Exists):
        agent.session("s9")
    assert len(kernel.luo.sessions.outgoing_blocks.blocks) == 2
    with pytest.raises(KernelPanic, match="cannot read the sessions"):
        reboot(kernel)
    assert fds


def test_without_sessions_the_empty_block_is_not_even_mentioned() -> None:
    kernel = power_on()
    kernel.luo.sessions.outgoing_blocks.grow(1)  # what a duplicate in an empty list would leave
    fresh = reboot(kernel)
    assert fresh.luo.sessions.incoming_blocks is None


def test_only_sessions_whose_descriptor_is_open_are_handed_over() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.task.close(agent.session("closed"))
    agent.session("open")
    after = Agent(reboot(kernel))
    after.retrieve("open")
    with pytest.raises(NoEntry):
        after.retrieve("closed")
    with pytest.raises(InvalidArgument):
        after.retrieve("open")


def test_names_of_incoming_sessions_are_free_for_outgoing_ones() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.session("s")
    after = Agent(reboot(kernel))
    after.session("s")
    after.task.close(after.retrieve("s"))
    with pytest.raises(NoEntry):
        after.retrieve("s")


def test_a_session_that_nobody_retrieves_is_gone_after_the_next_kexec() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.session("s")
    kernel = reboot(kernel)
    Agent(kernel)
    after = Agent(reboot(kernel))
    with pytest.raises(NoEntry):
        after.retrieve("s")


def test_two_incoming_sessions_of_one_name_make_every_open_fail() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    agent.session("one")
    agent.session("two")
    kernel.luo.sessions.outgoing[1].name = kernel.luo.sessions.outgoing[0].name
    fresh = reboot(kernel)
    for _ in range(2):
        with pytest.raises(IoError):
            Task(fresh, "agent").open(DEV_LIVEUPDATE)


def test_an_ioctl_is_decoded_in_the_kernels_order() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    outgoing = agent.session("s")
    create, preserve = LIVEUPDATE_CREATE_SESSION, LIVEUPDATE_SESSION_PRESERVE_FD
    finish, get_name = LIVEUPDATE_SESSION_FINISH, LIVEUPDATE_SESSION_GET_NAME
    table = [
        (agent.device, 0xBA7F, 72, {}, "EINVAL"),  # no such number, whatever else
        (agent.device, 0x4008BA00, 4, {}, "ENOTTY"),  # the encoding before the size
        (agent.device, create, 71, {}, "EINVAL"),
        (agent.device, create, 80, {76: 1}, "E2BIG"),
        (agent.device, create, 80, {8: ord("x")}, "ok"),  # longer, but only zeroes behind
        (outgoing, finish, 4, {}, "EINVAL"),  # the direction before the size
        (outgoing, preserve, 15, {}, "EINVAL"),
        (outgoing, get_name, 72, {4: 1}, "EINVAL"),
        (outgoing, get_name, 72, {}, "ok"),
        (outgoing, create, 72, {}, "EINVAL"),
    ]
    for fd, cmd, size, pokes, answer in table:
        arg = bytearray(4096)
        struct.pack_into("<I", arg, 0, size)
        for at, byte in pokes.items():
            arg[at] = byte
        if answer == "ok":
            agent.task.ioctl(fd, cmd, arg)
            continue
        with pytest.raises(ERRNO_CLASSES[answer]):
            agent.task.ioctl(fd, cmd, arg)


def test_a_kernel_without_live_update_has_no_device() -> None:
    for cmdline in ("", "liveupdate=off", "liveupdate=on kho=off"):
        with pytest.raises(NoEntry):
            Agent(power_on(cmdline))


def test_with_kho_off_live_update_turns_itself_off_and_what_came_over_stays_reserved() -> None:
    kernel = power_on()
    agent = Agent(kernel)
    with_toy(kernel)
    agent.task.preserve_fd(agent.session("s"), agent.memfd(4096), 1)
    preserved = kernel.kho.preserved_keys
    fresh = reboot(kernel, cmdline=f"{CMDLINE} kho=off")
    assert not fresh.luo.enabled
    assert sum(high - low for low, high, _ in fresh.kho.tags) == preserved


@pytest.mark.parametrize("liveupdate", ["on", "off"])
def test_another_version_of_luo_panics_whatever_the_command_line_says(liveupdate: str) -> None:
    kernel = power_on()
    kernel.memory.write(kernel.luo.luo_ser_pa, b"luo-v6\0\0")
    with pytest.raises(KernelPanic, match="incompatible"):
        reboot(kernel, cmdline=f"{CMDLINE} liveupdate={liveupdate}")


def test_the_number_of_updates_counts_on_and_wraps_round() -> None:
    kernel = power_on()
    assert kernel.luo.liveupdate_num == 0
    for expected in (1, 2, 3):
        kernel = reboot(kernel)
        assert kernel.luo.liveupdate_num == expected
    kernel.memory.write_u64(kernel.luo.luo_ser_pa + 8, (1 << 64) - 1)
    kernel = reboot(kernel)
    assert kernel.luo.liveupdate_num == (1 << 64) - 1
    assert reboot(kernel).luo.liveupdate_num == 0


def test_a_release_that_knows_other_strings_ignores_or_refuses_the_handover() -> None:
    kernel = power_on()
    Agent(kernel).session("s")
    # another KHO: nothing is looked at, the boot is an ordinary one
    old = reboot(kernel, "6.19")
    assert old.kho.incoming is None
    assert any("disabling KHO revival" in line for line in old.messages)


def test_errors_of_the_border_are_kernel_errors() -> None:
    task = Task(power_on(), "t")
    with pytest.raises(KernelError, match="ENOENT"):
        task.open("/dev/other")
