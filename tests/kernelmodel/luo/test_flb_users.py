"""References to FLBs that are no file's, links to several handlers, and what is latched."""

from __future__ import annotations

import pytest

from kernelmodel.abi.luo import LuoFlbSer
from kernelmodel.errors import InvalidArgument, IoError, NoData, NoEntry, NoMemory, NotSupported
from kernelmodel.kernel import Kernel
from kernelmodel.luo.handler import FileHandler, Flb
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import Agent, ToyHandler, power_on, reboot, with_toy


class Ops:
    """Logs its calls; `refuse` holds errors by the call's name, `obj` is what preserve gives."""

    def __init__(self, obj: object = "outgoing") -> None:
        self.log: list[str] = []
        self.refuse: dict[str, Exception] = {}
        self.obj = obj

    def _called(self, what: str) -> None:
        self.log.append(what)
        if what in self.refuse:
            raise self.refuse[what]

    def preserve(self) -> tuple[int, object]:
        self._called("preserve")
        return 77, self.obj

    def unpreserve(self, data: int, obj: object) -> None:
        self._called("unpreserve")

    def retrieve(self, data: int) -> object:
        self._called("retrieve")
        return "incoming"

    def finish(self, data: int, obj: object) -> None:
        self._called("finish")


class Host:
    """A kernel with a toy handler, the FLB `state` and one session."""

    def __init__(self, obj: object = "outgoing") -> None:
        self.agent = Agent(power_on())
        self.kernel = self.agent.kernel
        self.flbs = self.kernel.luo.flbs
        self.toy = with_toy(self.kernel)
        self.ops = Ops(obj)
        self.flb = Flb("state", self.ops)
        self.flbs.register(self.toy, self.flb)
        self.session = self.agent.session("s")

    def preserve(self, token: int) -> None:
        self.agent.task.preserve_fd(self.session, self.agent.null(), token)


def next_kernel(kernel: Kernel) -> tuple[Agent, ToyHandler, Flb, Ops]:
    """After the jump, with the same handler and FLB registered."""
    fresh = reboot(kernel)
    toy, ops = with_toy(fresh), Ops()
    flb = Flb("state", ops)
    fresh.luo.flbs.register(toy, flb)
    return Agent(fresh), toy, flb, ops


def test_an_outgoing_object_is_there_while_a_file_is_preserved() -> None:
    host = Host()
    with pytest.raises(NoEntry):
        host.flbs.get_outgoing(host.flb)
    host.preserve(1)
    assert host.flbs.get_outgoing(host.flb) == "outgoing"
    host.flbs.put_outgoing(host.flb)
    host.agent.task.close(host.session)
    assert host.ops.log == ["preserve", "unpreserve"]
    with pytest.raises(NoEntry):
        host.flbs.get_outgoing(host.flb)
    with pytest.raises(NotSupported):
        power_on("").luo.flbs.get_outgoing(host.flb)


def test_an_flb_that_sets_no_object_cannot_be_had_though_it_is_preserved() -> None:
    host = Host(obj=None)
    host.preserve(1)
    assert host.flb.outgoing_count == 1
    with pytest.raises(NoEntry):
        host.flbs.get_outgoing(host.flb)


def test_a_reference_outlives_the_last_file_and_is_handed_over_as_a_count() -> None:
    host = Host()
    host.preserve(1)
    host.flbs.get_outgoing(host.flb)
    host.agent.task.close(host.session)
    assert (host.ops.log, host.flb.outgoing_count) == (["preserve"], 1)
    validate_kernel(host.kernel, [host.agent.task])
    host.session = host.agent.session("again")
    host.preserve(2)
    agent, _, flb, _ = next_kernel(host.kernel)
    raw = agent.kernel.memory.read(agent.kernel.luo.flbs.incoming_pa + 16, LuoFlbSer.SIZE)
    assert LuoFlbSer.unpack(raw) == LuoFlbSer(b"state".ljust(48, b"\0"), 77, 2)
    # one of the two was no file's, so the last file does not finish it
    agent.kernel.luo.flbs.get_incoming(flb)
    agent.task.close(agent.retrieve("again"))
    assert (flb.incoming_count, flb.incoming_finished) == (2, False)


def test_dropping_the_reference_after_the_last_file_removes_the_object() -> None:
    host = Host()
    host.preserve(1)
    host.flbs.get_outgoing(host.flb)
    host.agent.task.close(host.session)
    host.flbs.put_outgoing(host.flb)
    assert (host.ops.log, host.flb.outgoing_count) == (["preserve", "unpreserve"], 0)
    validate_kernel(host.kernel, [host.agent.task])


def test_an_flb_of_two_handlers_counts_the_files_of_both() -> None:
    host = Host()
    other = ToyHandler(host.kernel, "toy-v2")
    with pytest.raises(InvalidArgument):
        host.flbs.register(other, host.flb)  # a handler that is not registered
    host.kernel.luo.register_file_handler(other)
    host.flbs.register(other, host.flb)
    host.toy.can_preserve = lambda file: not host.flb.outgoing_count  # type: ignore[method-assign]  # noqa: ARG005
    for token in (1, 2):
        host.preserve(token)
    handlers = [f.handler for f in host.kernel.luo.sessions.outgoing[0].file_set.files]
    assert handlers == [host.toy, other]
    assert (host.ops.log, host.flb.outgoing_count) == (["preserve"], 2)
    validate_kernel(host.kernel, [host.agent.task])


def test_the_place_of_an_flb_goes_with_its_last_link() -> None:
    kernel = power_on()
    toy, other = with_toy(kernel), with_toy(kernel, "toy-v2")
    flbs = kernel.luo.flbs
    one = Flb("name", Ops())
    flbs.register(toy, one)
    flbs.register(other, one)
    flbs.unregister(toy, one)
    assert flbs.registered == [one]
    flbs.unregister(other, one)
    flbs.unregister(other, one)
    assert flbs.registered == []
    flbs.register(toy, Flb("name", Ops()))  # the name is free again
    validate_kernel(kernel, [])


def test_a_handler_that_lacks_a_callback_is_refused() -> None:
    kernel = power_on()
    with pytest.raises(InvalidArgument, match="preserve unpreserve retrieve finish can_preserve"):
        kernel.luo.register_file_handler(FileHandler("half-v1"))
    off = power_on("")
    with pytest.raises(NotSupported):
        off.luo.register_file_handler(FileHandler("half-v1"))


def test_after_its_last_file_an_incoming_flb_is_no_data_for_ever() -> None:
    host = Host()
    host.preserve(1)
    agent, _, flb, ops = next_kernel(host.kernel)
    flbs = agent.kernel.luo.flbs
    assert flbs.get_incoming(flb) == "incoming"
    flbs.put_incoming(flb)
    agent.task.close(agent.retrieve("s"))
    assert ops.log == ["retrieve", "finish"]
    for _ in range(2):
        with pytest.raises(NoData):
            flbs.get_incoming(flb)


def test_a_user_keeps_an_incoming_flb_beyond_the_last_file() -> None:
    host = Host()
    host.preserve(1)
    agent, _, flb, ops = next_kernel(host.kernel)
    flbs = agent.kernel.luo.flbs
    flbs.get_incoming(flb)
    agent.task.close(agent.retrieve("s"))
    assert ops.log == ["retrieve"]
    flbs.put_incoming(flb)
    assert ops.log == ["retrieve", "finish"]
    assert not agent.kernel.tainted


def test_a_retrieve_that_failed_once_fails_for_ever_and_finish_never_runs() -> None:
    """The count was loaded before the callback was asked, so nothing warns either."""
    host = Host()
    host.preserve(1)
    agent, _, flb, ops = next_kernel(host.kernel)
    ops.refuse["retrieve"] = IoError("injected")
    for _ in range(2):
        with pytest.raises(IoError):
            agent.kernel.luo.flbs.get_incoming(flb)
        ops.refuse.clear()
    assert flb.incoming_count == 1
    agent.task.close(agent.retrieve("s"))
    assert (ops.log, flb.incoming_finished) == (["retrieve"], False)
    assert not agent.kernel.tainted


def test_nobody_looked_so_nothing_finishes_and_every_file_warns() -> None:
    """The count is loaded by the first look; the files' puts find 0 and go no further."""
    host = Host()
    for token in (1, 2):
        host.preserve(token)
    agent, _, flb, ops = next_kernel(host.kernel)
    agent.task.close(agent.retrieve("s"))
    assert (ops.log, flb.incoming_count, flb.incoming_finished) == ([], 0, False)
    assert agent.kernel.tainted
    warnings = [line for line in agent.kernel.messages if "drops below zero" in line]
    assert len(warnings) == 2
    # whoever looks now still gets it, with the count of the files that are long gone
    assert agent.kernel.luo.flbs.get_incoming(flb) == "incoming"
    assert flb.incoming_count == 3


def test_a_first_file_whose_flb_fails_can_be_tried_again() -> None:
    host = Host()
    host.ops.refuse["preserve"] = NoMemory("injected")
    with pytest.raises(NoMemory):
        host.preserve(1)
    assert (host.flb.outgoing_count, host.flb.outgoing_data) == (0, 0)
    host.ops.refuse.clear()
    host.preserve(1)
    assert (host.ops.log, host.flb.outgoing_count) == (["preserve", "preserve"], 1)


def test_an_flb_without_files_is_not_written_down() -> None:
    host = Host()
    idle = Flb("idle", Ops())
    host.flbs.register(host.toy, idle)
    host.preserve(1)
    host.flbs.unregister(host.toy, idle)  # its file-less life ends, the file's count stays with it
    agent, *_ = next_kernel(host.kernel)
    header = agent.kernel.luo.flbs.incoming_pa
    assert agent.kernel.memory.u64(header + 8) == 1
