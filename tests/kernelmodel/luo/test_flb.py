"""FLBs: state that lives as long as the files of its handlers."""

from __future__ import annotations

import pytest

from kernelmodel.errors import (
    Exists,
    InvalidArgument,
    IoError,
    KernelError,
    KernelPanic,
    NoData,
    NoEntry,
    NoSpace,
    NotSupported,
)
from kernelmodel.kernel import Kernel, KernelConfig
from kernelmodel.luo.flb import LUO_FLB_MAX
from kernelmodel.luo.handler import Flb
from kernelmodel.luo.liveupdate_test import TEST_FLB_NAMES
from kernelmodel.memory import MIB
from tests.kernelmodel.kernels import Agent, power_on, reboot, with_toy


class Ops:
    """Records its calls; `refuse` is raised by retrieve."""

    def __init__(self, refuse: KernelError | None = None) -> None:
        self.log: list[str] = []
        self.refuse = refuse

    def preserve(self) -> tuple[int, object]:
        self.log.append("preserve")
        return 77, self

    def unpreserve(self, data: int, obj: object) -> None:
        assert (data, obj) == (77, self)
        self.log.append("unpreserve")

    def retrieve(self, data: int) -> object:
        assert data == 77
        self.log.append("retrieve")
        if self.refuse is not None:
            raise self.refuse
        return "incoming"

    def finish(self, data: int, obj: object) -> None:
        assert (data, obj) == (77, "incoming")
        self.log.append("finish")


def test_63_flbs_with_names_of_their_own_fit_the_page() -> None:
    kernel = power_on()
    toy, other = with_toy(kernel), with_toy(kernel, "toy-v2")
    assert LUO_FLB_MAX == 63
    flbs = [Flb(f"flb-{n}", Ops()) for n in range(63)]
    for flb in flbs:
        kernel.luo.flbs.register(toy, flb)
    with pytest.raises(NoSpace):
        kernel.luo.flbs.register(toy, Flb("one more", Ops()))
    kernel.luo.flbs.register(other, flbs[0])  # known already: takes no slot
    with pytest.raises(Exists):
        kernel.luo.flbs.register(other, flbs[0])
    power = power_on()
    toy = with_toy(power)
    power.luo.flbs.register(toy, Flb("name", Ops()))
    with pytest.raises(Exists):
        power.luo.flbs.register(toy, Flb("name", Ops()))
    off = power_on("")
    with pytest.raises(NotSupported):
        off.luo.flbs.register(toy, Flb("name", Ops()))
    with pytest.raises(NotSupported):
        off.luo.flbs.get_incoming(Flb("name", Ops()))


def test_created_with_the_first_file_gone_with_the_last_over_all_sessions() -> None:
    kernel = power_on()
    toy, ops = with_toy(kernel), Ops()
    flb = Flb("state", ops)
    kernel.luo.flbs.register(toy, flb)
    agent = Agent(kernel)
    one, two = agent.session("one"), agent.session("two")
    for session, token in ((one, 1), (one, 2), (two, 1)):
        agent.task.preserve_fd(session, agent.null(), token)
    assert (ops.log, flb.outgoing_count) == (["preserve"], 3)
    agent.task.close(one)
    assert (ops.log, flb.outgoing_count) == (["preserve"], 1)
    agent.task.close(two)
    assert (ops.log, flb.outgoing_count, flb.outgoing_data) == (["preserve", "unpreserve"], 0, 0)


def handed_over(files: int) -> Kernel:
    """The kernel after one in which `files` files held the FLB `state`."""
    kernel = power_on()
    toy = with_toy(kernel)
    kernel.luo.flbs.register(toy, Flb("idle", Ops()))
    kernel.luo.flbs.register(toy, Flb("state", Ops()))
    agent = Agent(kernel)
    session = agent.session("s")
    for token in range(files):
        agent.task.preserve_fd(session, agent.null(), token)
    return reboot(kernel)


def test_the_count_comes_over_and_the_last_file_finishes() -> None:
    kernel = handed_over(2)
    toy, ops = with_toy(kernel), Ops()
    flb = Flb("state", ops)
    kernel.luo.flbs.register(toy, flb)
    agent = Agent(kernel)
    assert kernel.luo.flbs.get_incoming(flb) == "incoming"
    kernel.luo.flbs.put_incoming(flb)
    assert (ops.log, flb.incoming_count) == (["retrieve"], 2)
    agent.task.close(agent.retrieve("s"))
    assert ops.log == ["retrieve", "finish"]
    with pytest.raises(NoData):
        kernel.luo.flbs.get_incoming(flb)


def test_an_flb_that_nobody_looked_at_is_never_finished() -> None:
    kernel = handed_over(2)
    toy, ops = with_toy(kernel), Ops()
    kernel.luo.flbs.register(toy, Flb("state", ops))
    agent = Agent(kernel)
    agent.task.close(agent.retrieve("s"))
    assert ops.log == []
    assert any("below zero" in line for line in kernel.messages)


def test_what_a_retrieve_says_once_it_says_for_ever() -> None:
    kernel = handed_over(1)
    ops = Ops(IoError("injected"))
    flb = Flb("state", ops)
    kernel.luo.flbs.register(with_toy(kernel), flb)
    for _ in range(2):
        with pytest.raises(IoError):
            kernel.luo.flbs.get_incoming(flb)
    assert ops.log == ["retrieve"]


def test_without_a_handover_or_without_the_name_there_is_nothing() -> None:
    cold = power_on()
    with pytest.raises(NoData):
        cold.luo.flbs.get_incoming(Flb("state", Ops()))
    with pytest.raises(NoEntry):
        handed_over(1).luo.flbs.get_incoming(Flb("other", Ops()))
    with pytest.raises(NoEntry):
        handed_over(0).luo.flbs.get_incoming(Flb("state", Ops()))


def test_a_count_beyond_the_page_is_believed_until_it_faults() -> None:
    kernel = power_on()
    Agent(kernel)
    page = kernel.luo.flbs.outgoing_pa
    fresh = reboot(kernel)
    fresh.memory.write_u64(page + 8, 1000)
    with pytest.raises(NoEntry):  # a few pages on, no such name
        fresh.luo.flbs.get_incoming(Flb("state", Ops()))
    fresh.memory.write_u64(page + 8, 1 << 60)
    with pytest.raises(KernelPanic, match="page fault"):
        fresh.luo.flbs.get_incoming(Flb("state", Ops()))


# CONFIG_LIVEUPDATE_TEST.


def test_the_test_flbs_count_and_finish_without_anybody_looking() -> None:
    config = KernelConfig(liveupdate_test=True, kernel_bytes=8 * MIB, initrd_bytes=2 * MIB)
    kernel = power_on(config=config)
    assert [flb.name for flb in kernel.luo.flbs.registered] == list(TEST_FLB_NAMES)
    agent = Agent(kernel)
    session = agent.session("s")
    for token in range(3):
        agent.task.preserve_fd(session, agent.memfd(4096), token)
    fresh = reboot(kernel)
    assert [flb.incoming_count for flb in fresh.luo.flbs.registered] == [3, 3, 3]
    after = Agent(fresh)
    after.task.close(after.retrieve("s"))
    assert all(flb.incoming_finished for flb in fresh.luo.flbs.registered)
    assert not fresh.tainted


def test_the_test_flbs_refuse_a_wrong_number() -> None:
    config = KernelConfig(liveupdate_test=True, kernel_bytes=8 * MIB, initrd_bytes=2 * MIB)
    kernel = power_on(config=config)
    agent = Agent(kernel)
    session = agent.session("s")
    agent.task.preserve_fd(session, agent.memfd(4096), 1)
    kernel.luo.flbs.registered[1].outgoing_data ^= 1
    fresh = reboot(kernel)
    flb = fresh.luo.flbs.registered[1]
    with pytest.raises(InvalidArgument):
        fresh.luo.flbs.get_incoming(flb)
    assert sum("nothing came over" in line for line in fresh.messages) == 1
    assert session >= 0
