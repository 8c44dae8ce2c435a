"""FleetService: the inventory of a living fleet, and its rollout as clients steer and watch it.

The rollout of the served scenario starts when a client says so, once. Virtual time stands at 0
until then and afterwards runs at the chosen speed. A journal with something in it is gone on with:
a rollout that had been started is replayed to where it was, at once, and goes on from there.

Unhappy paths: what makes no sense in the rollout's state is FAILED_PRECONDITION with the
coordinator's reason. A simulator that fails (`ModelBug`, a shard that cannot be kept alive) ends
the watching streams with INTERNAL.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TypeVar

import grpc
import msgspec
from google.protobuf.message import Message

from fleet.api import RunRecord
from fleet.experiment import Experiment, RolloutRefused
from fleet.hosts import FleetHosts
from fleet.journal import Journal
from fleet.launcher import Backend, HostUnreachable
from fleet.messages import ROLLOUT_STATES, status_message
from fleet.pace import FreeRunning, Pace, Paced
from fleet.results import summarise
from fleet.scenario import Scenario
from fleet.steps import RequestKind
from lufleet.v1 import fleet_pb2, fleet_pb2_grpc
from node.api import VmSpec
from node.grpc_server import Context, NotHere, Server, abort, page
from node.messages import host_spec_message, update_message, vm_spec_message
from node.watchers import Watchers

__all__ = ["FLEET_SERVICE", "Fleet", "FleetServicer", "add_to"]

FLEET_SERVICE: str = fleet_pb2.DESCRIPTOR.services_by_name["FleetService"].full_name

_M = TypeVar("_M", bound=Message)

#: Most bytes of a list in one message: a client takes 4 MiB unless it says otherwise.
_MESSAGE_BYTES = 1 << 20

#: Longest reason of a request that is kept: every status tells it.
_REASON_CHARS = 500

#: Longest wait between two looks at a rollout that catches up with its journal.
_REPLAY_GLANCE_SECONDS = 0.01

#: Longest wait between two looks at the rollout while nothing changes.
_GLANCE_SECONDS = 1.0


class _PaceFromStart:
    """A pace whose clock stands still until the rollout starts."""

    def __init__(self, speed: float | None) -> None:
        self._speed = speed
        self._pace: Pace = FreeRunning()

    def start(self, from_ns: int) -> None:
        """From now on time passes, and what was to come before `from_ns` is overdue."""
        if self._speed is not None:
            self._pace = Paced(self._speed, from_ns=from_ns)

    def now_ns(self, at_least: int) -> int:
        """Virtual time now, given that it is `at_least` that already."""
        return self._pace.now_ns(at_least)

    async def glance(self, at_ns: int | None, wakeup: asyncio.Event) -> bool:
        """Wait for `at_ns`, but not for long; whether it has come."""
        return await self._pace.glance(at_ns, wakeup)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """No virtual time passes inside."""
        return self._pace.held()


class Fleet:
    """A scenario whose hosts are up and whose rollout waits to be started.

    `experiment` may be read at any time; `hosts` are its hosts for `HostService`; `broken` gets the
    exception if the rollout breaks off. Once it `is_up`, every host has booted and a rollout that
    is taken up is where it was. `on_over` is told what came of a rollout that ended. It is made
    inside the event loop that it lives in.
    """

    def __init__(
        self,
        scenario: Scenario,
        backend: Backend,
        journal: Journal,
        *,
        actors: int | str | None = None,
        speed: float | None = None,
        on_over: Callable[[RunRecord], None] = lambda _: None,
    ) -> None:
        self._pace = _PaceFromStart(speed)
        self._journal = journal
        self._on_over = on_over
        watchers = Watchers()
        self.experiment = Experiment(
            scenario,
            backend,
            journal,
            actors=actors,
            pace=self._pace,
            on_result=watchers.updated,
        )
        self.hosts = FleetHosts(self.experiment, journal, watchers, speed)
        self.rollout: asyncio.Task[RunRecord] | None = None
        self.is_up = False
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        """Boot every host, and take up the rollout where the journal leaves it."""
        await self.experiment.open(gauges=True)
        if self._journal.has_rollout:
            self.start()
            while self.experiment.is_replaying and not self.is_over:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REPLAY_GLANCE_SECONDS):
                        await self.experiment.changed()
        self.is_up = True

    def start(self) -> None:
        """Start the rollout.

        Raises:
            NotHere: it was started before.
        """
        if self.rollout is not None:
            raise _precondition("ROLLOUT_STARTED", "the rollout was started already")
        self._pace.start(self._journal.reached_ns())
        self.rollout = asyncio.ensure_future(self.experiment.run())
        self.rollout.add_done_callback(self._ended)

    def _ended(self, rollout: asyncio.Task[RunRecord]) -> None:
        if rollout.cancelled():
            return
        if (error := rollout.exception()) is None:
            self._on_over(rollout.result())
        elif not self.broken.done():
            self.broken.set_exception(error)

    @property
    def is_over(self) -> bool:
        """Whether the rollout has ended, or broken off."""
        return self.rollout is not None and self.rollout.done()

    def record(self) -> RunRecord:
        """What came of the rollout.

        Raises:
            NotHere: it has not ended, or has broken off.
        """
        if self.rollout is None or not self.rollout.done():
            raise _precondition("ROLLOUT_NOT_OVER", "the rollout has not ended")
        if error := self.rollout.exception():
            raise NotHere(grpc.StatusCode.INTERNAL, "ROLLOUT_BROKE_OFF", str(error))
        return self.rollout.result()

    async def close(self) -> None:
        """Break off the rollout if it still runs."""
        self.broken.cancel()
        if self.rollout is not None:
            self.rollout.cancel()
            await asyncio.wait({self.rollout})  # what it failed of, the loop reports


class FleetServicer(fleet_pb2_grpc.FleetServiceServicer):
    """FleetService of one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        scenario = fleet.experiment.scenario
        self._scenario = scenario.name
        self._hosts = {host.name: host for host in scenario.hosts}
        self._vms: dict[str, list[VmSpec]] = {name: [] for name in self._hosts}
        for vm in scenario.vms:
            self._vms[vm.host].append(vm)

    def _status(self) -> fleet_pb2.RolloutStatus:
        return status_message(self._fleet.experiment.snapshot)

    async def ListInventory(
        self, request: fleet_pb2.ListInventoryRequest, context: Context
    ) -> fleet_pb2.ListInventoryResponse:
        """Hosts with their VMs, page by page."""
        wanted = request.domains.items()
        names = [name for name, host in self._hosts.items() if wanted <= host.domains.items()]
        known = {key for host in self._hosts.values() for key in host.domains}
        try:
            if unknown := sorted(request.domains.keys() - known):
                said = f"no failure domain {unknown[0]!r}; there are: {', '.join(sorted(known))}"
                raise NotHere(grpc.StatusCode.INVALID_ARGUMENT, "NO_SUCH_DOMAIN", said)
            chosen, _ = page(names, request.page_size, request.page_token)
        except NotHere as why:
            await abort(context, why)
        hosts = next(_messagefuls(map(self._inventory_host, chosen)), [])
        end = int(request.page_token or 0) + len(hosts)
        return fleet_pb2.ListInventoryResponse(
            scenario=self._scenario,
            hosts=hosts,
            next_page_token=str(end) if end < len(names) else "",
            total_hosts=len(names),
        )

    def _inventory_host(self, name: str) -> fleet_pb2.InventoryHost:
        return fleet_pb2.InventoryHost(
            host=host_spec_message(self._hosts[name]), vms=map(vm_spec_message, self._vms[name])
        )

    async def ListShards(
        self, request: fleet_pb2.ListShardsRequest, context: Context
    ) -> fleet_pb2.ListShardsResponse:
        """The shards and their addresses."""
        shards = self._fleet.experiment.shards
        try:
            addresses = await asyncio.gather(*(shard.call("grpc_address") for shard in shards))
        except HostUnreachable as gone:
            unavailable = grpc.StatusCode.UNAVAILABLE
            await abort(context, NotHere(unavailable, "HOST_UNREACHABLE", str(gone)))
        return fleet_pb2.ListShardsResponse(
            shards=[
                fleet_pb2.Shard(hosts=shard.hosts, address=address)
                for shard, address in zip(shards, addresses, strict=True)
            ]
        )

    async def StartRollout(
        self,
        request: fleet_pb2.StartRolloutRequest,
        context: Context,
    ) -> fleet_pb2.StartRolloutResponse:
        """Start the rollout; its first commands are in the journal before this is answered."""
        try:
            self._fleet.start()
        except NotHere as why:
            await abort(context, why)
        await asyncio.sleep(0)  # it takes its first steps now, and can be paused from here on
        return fleet_pb2.StartRolloutResponse(status=self._status())

    async def WatchRollout(
        self,
        request: fleet_pb2.WatchRolloutRequest,
        context: Context,
    ) -> AsyncIterator[fleet_pb2.WatchRolloutResponse]:
        """The rollout as it goes, to its end."""
        experiment = self._fleet.experiment
        shown, told = None, 0
        while True:
            is_over, snapshot = self._fleet.is_over, experiment.snapshot
            if snapshot is not shown:
                finished = experiment.results[told:]
                shown, told = snapshot, told + len(finished)
                status = status_message(snapshot)
                for some in _messagefuls(map(update_message, finished)) if finished else [[]]:
                    yield fleet_pb2.WatchRolloutResponse(status=status, finished=some)
            elif is_over:
                break
            else:
                # The limit is for a change that came between the look and the wait.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GLANCE_SECONDS):
                        await experiment.changed()
        try:
            self._fleet.record()
        except NotHere as why:
            await abort(context, why)

    async def _request(self, kind: RequestKind, reason: str, context: Context) -> None:
        try:
            await self._fleet.experiment.request(kind, _one_line(reason))
        except RolloutRefused as refused:
            await abort(context, _precondition("ROLLOUT_REFUSED", str(refused)))

    async def PauseRollout(
        self, request: fleet_pb2.PauseRolloutRequest, context: Context
    ) -> fleet_pb2.PauseRolloutResponse:
        """Start no further host for now."""
        await self._request(RequestKind.PAUSE, request.reason, context)
        return fleet_pb2.PauseRolloutResponse(status=self._status())

    async def ResumeRollout(
        self, request: fleet_pb2.ResumeRolloutRequest, context: Context
    ) -> fleet_pb2.ResumeRolloutResponse:
        """Go on."""
        await self._request(RequestKind.RESUME, request.reason, context)
        return fleet_pb2.ResumeRolloutResponse(status=self._status())

    async def AbortRollout(
        self, request: fleet_pb2.AbortRolloutRequest, context: Context
    ) -> fleet_pb2.AbortRolloutResponse:
        """Start no further host at all."""
        await self._request(RequestKind.ABORT, request.reason, context)
        return fleet_pb2.AbortRolloutResponse(status=self._status())

    async def GetResult(
        self,
        request: fleet_pb2.GetResultRequest,
        context: Context,
    ) -> fleet_pb2.GetResultResponse:
        """What came of the rollout."""
        try:
            record = self._fleet.record()
        except NotHere as why:
            await abort(context, why)
        return fleet_pb2.GetResultResponse(
            state=ROLLOUT_STATES[record.state],
            why=record.why,
            digest=record.digest,
            virtual_time_ns=record.virtual_ns,
            result_json=msgspec.json.encode(summarise(record)).decode(),
        )


def _messagefuls(items: Iterable[_M]) -> Iterator[list[_M]]:
    """Items in lists that fit into a message; none is empty."""
    some: list[_M] = []
    size = 0
    for item in items:
        if some and size + item.ByteSize() > _MESSAGE_BYTES:
            yield some
            some, size = [], 0
        some.append(item)
        size += item.ByteSize()
    if some:
        yield some


def _one_line(reason: str) -> str:
    """What a client gives as its reason, fit for logs, reports and terminals."""
    line = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
    return line if len(line) <= _REASON_CHARS else f"{line[:_REASON_CHARS]} …"


def _precondition(reason: str, message: str) -> NotHere:
    return NotHere(grpc.StatusCode.FAILED_PRECONDITION, reason, message)


def add_to(server: Server, fleet: Fleet) -> None:
    """Serve FleetService for this fleet."""
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(FleetServicer(fleet), server)
