"""HostService of a whole served fleet: one address, a journal, and a rollout beside it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import msgspec
import pytest

from examples import host_update, watch_rollout
from fleet.experiment import run_rollout
from fleet.launcher import LocalBackend
from fleet.scenario import RolloutSpec, Scenario
from fleet.server import Endpoints
from lufleet.v1 import fleet_pb2, fleet_pb2_grpc, host_pb2, host_pb2_grpc
from node.api import HostCall
from node.status import errno_of, error_info_of
from tests.e2e.served import blocking, served
from tests.fleet.rollouts import scenario_of
from tests.node.small_hosts import NEW, host_spec, vm_specs

if TYPE_CHECKING:
    from lufleet.v1.host_pb2_grpc import HostServiceAsyncStub as Stub

HOSTS = ("r1-h01", "r1-h02", "r2-h01")
FLEET: Scenario = msgspec.structs.replace(
    scenario_of(tuple(map(host_spec, HOSTS)), RolloutSpec(canary=1, wave_size=2)),
    vms=tuple(vm for host in HOSTS for vm in vm_specs(host)),
)


def journaled(path: Path) -> list[HostCall]:
    """The calls in a journal, read from its file while the fleet is still served."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT body FROM deed WHERE seq IS NULL ORDER BY nr").fetchall()
    return [msgspec.msgpack.decode(body, type=HostCall) for (body,) in rows]


async def reason(call: Awaitable[object]) -> str:
    """Errno or reason with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = error_info_of(caught.value)
    assert info is not None
    return errno_of(caught.value) or info.reason


def test_the_example_updates_one_host_step_by_step(capsys: pytest.CaptureFixture[str]) -> None:
    async def client(endpoints: Endpoints) -> int:
        return await blocking(
            lambda channel: host_update.run(host_pb2_grpc.HostServiceStub(channel), "", NEW),
            endpoints.grpc,
        )

    assert served(client, FLEET, LocalBackend()) == 0
    said = capsys.readouterr().out
    assert "once more under the same token: EEXIST" in said
    assert "r1-h01-huge: intact" in said
    assert f"{HOSTS[0]}: {NEW}" in said.splitlines()[-1]


def test_the_example_watches_a_rollout(capsys: pytest.CaptureFixture[str]) -> None:
    async def client(endpoints: Endpoints) -> int:
        return await blocking(
            lambda channel: watch_rollout.run(fleet_pb2_grpc.FleetServiceStub(channel)),
            endpoints.grpc,
        )

    assert served(client, FLEET, LocalBackend()) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 hosts, 6 VMs")
    assert '"updated": 3' in said


def test_the_example_aborts_a_rollout(capsys: pytest.CaptureFixture[str]) -> None:
    async def client(endpoints: Endpoints) -> int:
        return await blocking(
            lambda channel: watch_rollout.run(
                fleet_pb2_grpc.FleetServiceStub(channel), pause_after=1, abort_after=1
            ),
            endpoints.grpc,
        )

    paced = msgspec.structs.replace(
        FLEET, rollout=msgspec.structs.replace(FLEET.rollout, canary_soak_ns=10**12)
    )
    assert served(client, paced, LocalBackend(), speed=200) == 3
    assert '"skipped": 2' in capsys.readouterr().out


def test_a_change_is_in_the_journal_when_it_is_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"

    async def client(endpoints: Endpoints) -> None:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            host = HOSTS[1]
            pause = host_pb2.PauseVmRequest(host=host, vm=f"{host}-huge")
            await stub.PauseVm(pause)
            assert journaled(path) == [HostCall(host, 0, "PauseVm", pause.SerializeToString())]
            # A refused call has cost time, so it is there as well; a look is not.
            session = host_pb2.CreateSessionRequest(host=host, session="s" * 64)
            assert await reason(stub.CreateSession(session)) == "EINVAL"
            await stub.GetHost(host_pb2.GetHostRequest(host=host))
            calls = journaled(path)
            assert len(calls) == 2
            assert calls[1].method == "CreateSession"

    served(client, FLEET, LocalBackend(), journal_path=path)


def test_an_unknown_host_is_not_found_and_not_journaled(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"

    async def client(endpoints: Endpoints) -> None:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            request = host_pb2.PauseVmRequest(host="r9-h01", vm="vm")
            assert await reason(stub.PauseVm(request)) == "NO_SUCH_HOST"

    served(client, FLEET, LocalBackend(), journal_path=path)
    assert journaled(path) == []


def test_a_host_that_the_rollout_updates_takes_no_changes() -> None:
    async def client(endpoints: Endpoints) -> None:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            fleet = fleet_pb2_grpc.FleetServiceStub(channel)
            await fleet.StartRollout(fleet_pb2.StartRolloutRequest())
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            busy = host_pb2.PauseVmRequest(host=HOSTS[0], vm=f"{HOSTS[0]}-huge")
            assert await reason(stub.PauseVm(busy)) == "HOST_IS_UPDATING"
            look = await stub.GetHost(host_pb2.GetHostRequest(host=HOSTS[0]))
            assert look.host.spec.name == HOSTS[0]
            idle = host_pb2.PauseVmRequest(host=HOSTS[2], vm=f"{HOSTS[2]}-huge")
            await stub.PauseVm(idle)

    served(client, FLEET, LocalBackend(), speed=1)


def test_a_host_changed_by_hand_changes_the_run() -> None:
    """The digest covers what came in over HostService, and the same calls give the same one."""

    def digest(*by_hand: str) -> str:
        async def client(endpoints: Endpoints) -> str:
            async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
                stub: Stub = host_pb2_grpc.HostServiceStub(channel)
                for host in by_hand:
                    request = host_pb2.CreateSessionRequest(host=host, session="by-hand")
                    await stub.CreateSession(request)
                fleet = fleet_pb2_grpc.FleetServiceStub(channel)
                await fleet.StartRollout(fleet_pb2.StartRolloutRequest())
                async for _ in fleet.WatchRollout(fleet_pb2.WatchRolloutRequest()):
                    pass
                return (await fleet.GetResult(fleet_pb2.GetResultRequest())).digest

        return served(client, FLEET, LocalBackend())

    undisturbed = asyncio.run(run_rollout(FLEET, LocalBackend())).digest
    assert digest() == undisturbed
    assert digest(HOSTS[0]) == digest(HOSTS[0]) != undisturbed
    assert digest(HOSTS[0]) != digest(HOSTS[1])


def test_every_host_is_listed_under_the_one_address() -> None:
    async def client(endpoints: Endpoints) -> list[str]:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            return [*(await stub.ListHosts(host_pb2.ListHostsRequest())).names]

    assert served(client, FLEET, LocalBackend(), actors=2) == [*HOSTS]


def test_shards_inside_the_server_have_no_address_of_their_own() -> None:
    async def client(endpoints: Endpoints) -> list[tuple[int, str]]:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            fleet = fleet_pb2_grpc.FleetServiceStub(channel)
            shards = (await fleet.ListShards(fleet_pb2.ListShardsRequest())).shards
            return sorted((len(shard.hosts), shard.address) for shard in shards)

    assert served(client, FLEET, LocalBackend(), actors=2) == [(1, ""), (2, "")]


def test_a_watcher_hears_what_others_do_to_a_host() -> None:
    async def client(endpoints: Endpoints) -> str:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            watching = stub.WatchEvents(host_pb2.WatchEventsRequest(host=HOSTS[0]))
            async for message in watching:
                if message.HasField("event"):
                    watching.cancel()
                    return message.event.name
                request = host_pb2.CreateSessionRequest(host=HOSTS[0], session="s")
                await stub.CreateSession(request)
        return ""

    assert served(client, FLEET, LocalBackend()) == "create_session"


def test_a_watcher_hears_a_rollout_and_what_was_done_before_it_once() -> None:
    async def client(endpoints: Endpoints) -> list[str]:
        heard: list[str] = []
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            fleet = fleet_pb2_grpc.FleetServiceStub(channel)
            watching = stub.WatchEvents(host_pb2.WatchEventsRequest(host=HOSTS[0]))
            async for message in watching:
                heard.append(message.event.name)
                if heard == [""]:
                    request = host_pb2.CreateSessionRequest(host=HOSTS[0], session="s")
                    await stub.CreateSession(request)
                    await fleet.StartRollout(fleet_pb2.StartRolloutRequest())
                if heard[-1] == "vm_done" and heard.count("vm_done") == 2:
                    break
            watching.cancel()
        return heard

    heard = served(client, FLEET, LocalBackend())
    assert heard[:3] == ["", "create_session", "update"]
    assert heard.count("create_session") == 3  # one by hand, one for each VM
    assert "jump" in heard
