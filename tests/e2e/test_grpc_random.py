"""Random calls of several clients at once: what a server says, journals and comes back with agrees.

`LUFLEET_RPC_CALLS` makes it longer than the suite has time for, `LUFLEET_RPC_SEED` another one.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from fleet.launcher import LocalBackend
from fleet.placement import partition
from fleet.plan import make_plan
from fleet.server import Endpoints
from kernelmodel.sim.trace import decode
from lufleet.v1 import host_pb2, host_pb2_grpc
from node.messages import event_message
from node.shard import Shard
from node.status import error_info_of
from tests.e2e.served import served
from tests.e2e.test_grpc_hosts import FLEET, HOSTS, journaled
from tests.node.small_hosts import NEW, OLD

if TYPE_CHECKING:
    from lufleet.v1.host_pb2_grpc import HostServiceAsyncStub as Stub

CALLS = int(os.environ.get("LUFLEET_RPC_CALLS", "300"))
SEED = int(os.environ.get("LUFLEET_RPC_SEED", "1"))
CLIENTS = 3
NAMES = ("s", "", "x" * 64, "é\0", "\x1b[2J")
TOKENS = (1, 1, 1, 0, 2**64 - 1)
WRONG = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


def a_request(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """An rpc of HostService and its fields: often what a host can do, often what it cannot."""
    host = chance.choice(HOSTS)
    vm = chance.choice([spec.name for spec in FLEET.vms if spec.host == host])
    session = chance.choice([vm, vm, vm, chance.choice(NAMES)])
    file = {"session": session, "token": chance.choice(TOKENS), "vm": vm}
    release = chance.choice([NEW, NEW, OLD, "7.3.4", "6.18+luo-v4", "7.2.13", ""])
    fault = chance.choice(["freeze-fails", "next-kernel-panics", "drop-preserved-page", "rust"])
    asked: list[tuple[str, dict[str, Any], int]] = [
        ("GetHost", {}, 2),
        ("PauseVm", {"vm": vm}, 3),
        ("ResumeVm", {"vm": vm}, 3),
        ("RestartVm", {"vm": vm}, 3),
        ("CreateSession", {"session": session}, 3),
        ("PreserveFd", file, 3),
        ("PreserveVm", {"vm": vm}, 9),
        ("CloseSession", {"session": session}, 2),
        ("LoadKexec", {"release": release}, 4),
        ("Reboot", {}, 4),
        ("ColdReboot", {}, 2),
        ("RetrieveSession", {"session": session}, 8),
        ("RetrieveFd", file, 8),
        ("FinishSession", {"session": session}, 4),
        ("UpdateHost", {"release": release}, 2),
        ("InjectFault", {"fault": host_pb2.FaultSpec(kind=fault)}, 1),
    ]
    (chosen,) = chance.choices(asked, [weight for _, _, weight in asked])
    return chosen[0], {"host": host, **chosen[1]}


async def ask(stub: Stub, method: str, fields: dict[str, Any], patience: float) -> None:
    """Make a call, to its end or as long as the client waits for it."""
    request = getattr(host_pb2, f"{method}Request")(**fields)
    call = getattr(stub, method)(request, timeout=patience)
    refused = None
    try:
        if isinstance(call, AsyncIterable):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        refused = error
    gave_up = refused and refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED and patience < 1
    if refused is not None and not gave_up:
        assert refused.code() not in WRONG, (request, refused)
        assert error_info_of(refused) is not None, (request, refused)
        assert refused.details()


class Listener:
    """What happens on every host, as clients hear it."""

    def __init__(self) -> None:
        self.heard: dict[str, list[host_pb2.HostEvent]] = {name: [] for name in HOSTS}
        self._more = asyncio.Event()

    async def listen(self, stub: Stub, host: str, ready: asyncio.Event) -> None:
        async for message in stub.WatchEvents(host_pb2.WatchEventsRequest(host=host)):
            if message.HasField("event"):
                self.heard[host].append(message.event)
            ready.set()
            self._more.set()

    async def has_heard(self, count: int) -> None:
        """Return when it has heard so many events."""
        while sum(map(len, self.heard.values())) < count:
            self._more.clear()
            await self._more.wait()


async def hosts_of(stub: Stub) -> list[host_pb2.Host]:
    return [(await stub.GetHost(host_pb2.GetHostRequest(host=name))).host for name in HOSTS]


def replay(path: Path) -> dict[str, list[host_pb2.HostEvent]]:
    """What happens on hosts that go through a journal's calls, in its order."""
    (config,) = partition(FLEET, make_plan(FLEET), shards=1, records_events=False)
    shard = Shard(config)
    happened: dict[str, list[host_pb2.HostEvent]] = {name: [] for name in HOSTS}
    for call in journaled(path):
        happened[call.host] += map(event_message, decode(shard.call_host(call).events))
    return happened


def test_watchers_the_journal_and_a_resumed_server_tell_the_same(tmp_path: Path) -> None:
    path, listener = tmp_path / "journal.sqlite", Listener()

    async def clients(endpoints: Endpoints) -> list[host_pb2.Host]:
        chance = random.Random(SEED)
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            listening = []
            for host in HOSTS:
                ready = asyncio.Event()
                listening.append(asyncio.ensure_future(listener.listen(stub, host, ready)))
                await ready.wait()

            async def client() -> None:
                for _ in range(CALLS // CLIENTS):
                    await ask(stub, *a_request(chance), chance.choice([60, 60, 60, 0.002]))

            await asyncio.gather(*(client() for _ in range(CLIENTS)))
            stood = await hosts_of(stub)
            await listener.has_heard(sum(map(len, replay(path).values())))
            for task in listening:
                task.cancel()
            return stood

    async def look(endpoints: Endpoints) -> list[host_pb2.Host]:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            return await hosts_of(host_pb2_grpc.HostServiceStub(channel))

    stood = served(clients, FLEET, LocalBackend(), journal_path=path)
    assert listener.heard == replay(path)
    for events in listener.heard.values():
        times = [event.virtual_time_ns for event in events]
        assert times == sorted(times)
    assert served(look, FLEET, LocalBackend(), journal_path=path, resume=True) == stood
