"""FleetService over a real connection: a client steers and watches a rollout of invented hosts."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import grpc
import msgspec
import pytest

from fleet.journal import Journal, journal_header
from fleet.scenario import RolloutSpec, Scenario
from fleet.server import BadAddress, Endpoints, serve, split_address
from kernelmodel.errors import ModelBug
from lufleet.v1 import fleet_pb2, fleet_pb2_grpc
from node.api import Backing, VmSpec
from node.grpc_server import AddressInUse
from node.status import SIMULATOR_DOMAIN, error_info_of
from tests.e2e.served import served
from tests.fleet.rollouts import racks, scenario_of
from tests.fleet.toys import ToyBackend

if TYPE_CHECKING:
    from lufleet.v1.fleet_pb2_grpc import FleetServiceAsyncStub as Stub

_T = TypeVar("_T")

SIX_HOSTS = scenario_of(racks(3, 3), RolloutSpec(canary=1, wave_size=2))


def with_stub(
    client: Callable[[Stub], Awaitable[_T]],
    scenario: Scenario = SIX_HOSTS,
    backend: ToyBackend | None = None,
    speed: float | None = None,
) -> _T:
    """What `client` returns, run against a served fleet."""

    async def connected(endpoints: Endpoints) -> _T:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            return await client(fleet_pb2_grpc.FleetServiceStub(channel))

    return served(connected, scenario, backend or ToyBackend(), speed=speed)


async def refused(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    """Status and reason with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = error_info_of(caught.value)
    assert info is not None
    assert info.domain == SIMULATOR_DOMAIN
    return caught.value.code(), info.reason


PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def test_nothing_can_be_asked_of_a_rollout_that_has_not_started() -> None:
    async def client(stub: Stub) -> None:
        for call in (
            stub.PauseRollout(fleet_pb2.PauseRolloutRequest()),
            stub.ResumeRollout(fleet_pb2.ResumeRolloutRequest()),
            stub.AbortRollout(fleet_pb2.AbortRolloutRequest()),
        ):
            assert await refused(call) == (PRECONDITION, "ROLLOUT_REFUSED")
        result = stub.GetResult(fleet_pb2.GetResultRequest())
        assert await refused(result) == (PRECONDITION, "ROLLOUT_NOT_OVER")

    with_stub(client)


def test_a_rollout_starts_once() -> None:
    async def client(stub: Stub) -> None:
        await stub.StartRollout(fleet_pb2.StartRolloutRequest())
        again = stub.StartRollout(fleet_pb2.StartRolloutRequest())
        assert await refused(again) == (PRECONDITION, "ROLLOUT_STARTED")

    with_stub(client, speed=1)


def test_a_rollout_that_has_started_says_so() -> None:
    async def client(stub: Stub) -> None:
        started = await stub.StartRollout(fleet_pb2.StartRolloutRequest())
        assert started.status.state == fleet_pb2.ROLLOUT_STATE_CANARY
        assert started.status.hosts["updating"] == 1

    with_stub(client, speed=60)


def test_a_simulator_that_fails_tells_the_watchers_and_ends_the_server() -> None:
    async def client(stub: Stub) -> None:
        await stub.StartRollout(fleet_pb2.StartRolloutRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.WatchRollout(fleet_pb2.WatchRolloutRequest()):
                pass
        assert caught.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)

    backend = ToyBackend(calls_left=1, failure=ModelBug("the toy is broken"))
    with pytest.raises(ModelBug, match="the toy is broken"):
        with_stub(client, scenario_of(racks(1)), backend)


def test_an_address_that_is_none_is_refused() -> None:
    for address in ("localhost", ":1", "localhost:", "localhost:http", "127.0.0.1:70000"):
        with pytest.raises(BadAddress, match="HOST:PORT"):
            split_address(address)
    assert split_address("[::1]:9464") == ("::1", 9464)


def test_an_address_in_use_is_named() -> None:
    async def client(stub: Stub) -> None:
        del stub
        with Journal.create(None, journal_header(SIX_HOSTS, records_events=False)) as journal:
            taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
            port = taken.sockets[0].getsockname()[1]
            address = f"127.0.0.1:{port}"
            for grpc_address, metrics in ((address, "127.0.0.1:0"), ("127.0.0.1:0", address)):
                with pytest.raises(AddressInUse, match=str(port)):
                    await serve(
                        SIX_HOSTS,
                        ToyBackend(),
                        journal,
                        asyncio.Event(),
                        grpc_address=grpc_address,
                        metrics_address=metrics,
                    )
            taken.close()
            await taken.wait_closed()

    with_stub(client)


def test_the_inventory_comes_in_pages_and_by_failure_domain() -> None:
    async def client(stub: Stub) -> None:
        names: list[str] = []
        request = fleet_pb2.ListInventoryRequest(page_size=4)
        while True:
            page = await stub.ListInventory(request)
            assert page.total_hosts == 6
            assert page.scenario == SIX_HOSTS.name
            names += [entry.host.name for entry in page.hosts]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert names == [host.name for host in SIX_HOSTS.hosts]

        rack = await stub.ListInventory(fleet_pb2.ListInventoryRequest(domains={"rack": "r2"}))
        assert [entry.host.name for entry in rack.hosts] == ["r2-h01", "r2-h02", "r2-h03"]
        assert all(vm.host == entry.host.name for entry in rack.hosts for vm in entry.vms)

        nobody = await stub.ListInventory(fleet_pb2.ListInventoryRequest(domains={"rack": "r9"}))
        assert nobody.total_hosts == 0
        nonsense = stub.ListInventory(fleet_pb2.ListInventoryRequest(domains={"rak": "r2"}))
        assert await refused(nonsense) == (grpc.StatusCode.INVALID_ARGUMENT, "NO_SUCH_DOMAIN")
        nonsense = stub.ListInventory(fleet_pb2.ListInventoryRequest(page_token="next"))
        assert await refused(nonsense) == (grpc.StatusCode.INVALID_ARGUMENT, "NO_SUCH_PAGE")

    with_stub(client)


def test_lists_are_cut_to_what_a_client_takes() -> None:
    """A client refuses messages of more than 4 MiB; here nine hosts have 10,000 VMs each."""
    hosts = racks(9)
    vms = tuple(
        VmSpec(f"{host.name}-{nr:05}", host.name, 1 << 30, Backing.MEMFD, 2)
        for host in hosts
        for nr in range(10_000)
    )
    scenario = scenario_of(hosts, RolloutSpec(canary=1, wave_size=8))
    scenario = msgspec.structs.replace(scenario, vms=vms)

    async def client(stub: Stub) -> tuple[int, int]:
        listed = 0
        request = fleet_pb2.ListInventoryRequest()
        while True:
            page = await stub.ListInventory(request)
            listed += sum(len(entry.vms) for entry in page.hosts)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        await stub.StartRollout(fleet_pb2.StartRolloutRequest())
        async for _ in stub.WatchRollout(fleet_pb2.WatchRolloutRequest()):
            pass
        told = 0
        async for message in stub.WatchRollout(fleet_pb2.WatchRolloutRequest()):
            told += sum(len(update.vms) for update in message.finished)
        return listed, told

    assert with_stub(client, scenario) == (len(vms), len(vms))


def test_a_watcher_sees_every_update_once_and_the_end() -> None:
    async def client(stub: Stub) -> list[fleet_pb2.WatchRolloutResponse]:
        await stub.StartRollout(fleet_pb2.StartRolloutRequest())
        watching = stub.WatchRollout(fleet_pb2.WatchRolloutRequest())
        return [message async for message in watching]

    messages = with_stub(client)
    updates = [update.host for message in messages for update in message.finished]
    assert sorted(updates) == sorted(host.name for host in SIX_HOSTS.hosts)
    assert messages[-1].status.state == fleet_pb2.ROLLOUT_STATE_COMPLETED
    assert messages[-1].status.hosts["updated"] == 6
    times = [message.status.virtual_time_ns for message in messages]
    assert times == sorted(times)


def test_a_late_watcher_is_told_what_it_has_missed() -> None:
    async def client(stub: Stub) -> None:
        await stub.StartRollout(fleet_pb2.StartRolloutRequest())
        watched = [m async for m in stub.WatchRollout(fleet_pb2.WatchRolloutRequest())]
        late = [m async for m in stub.WatchRollout(fleet_pb2.WatchRolloutRequest())]
        assert len(late) == 1
        assert len(late[0].finished) == 6
        assert late[0].status == watched[-1].status

    with_stub(client)


def test_the_result_is_that_of_an_undisturbed_run() -> None:
    async def client(stub: Stub) -> fleet_pb2.GetResultResponse:
        await stub.StartRollout(fleet_pb2.StartRolloutRequest())
        async for _ in stub.WatchRollout(fleet_pb2.WatchRolloutRequest()):
            pass
        return await stub.GetResult(fleet_pb2.GetResultRequest())

    first, second = with_stub(client), with_stub(client)
    assert first.digest == second.digest
    assert first.state == fleet_pb2.ROLLOUT_STATE_COMPLETED
    summary = json.loads(first.result_json)
    assert summary["digest"] == first.digest
    assert summary["hosts"]["updated"] == 6


def test_pause_resume_and_abort_are_obeyed_and_logged() -> None:
    async def client(stub: Stub) -> fleet_pb2.GetResultResponse:
        await stub.StartRollout(fleet_pb2.StartRolloutRequest())
        paused = await stub.PauseRollout(fleet_pb2.PauseRolloutRequest(reason="lunch"))
        assert paused.status.state == fleet_pb2.ROLLOUT_STATE_PAUSED
        assert paused.status.why == "lunch"
        again = stub.PauseRollout(fleet_pb2.PauseRolloutRequest())
        assert await refused(again) == (PRECONDITION, "ROLLOUT_REFUSED")
        resumed = await stub.ResumeRollout(fleet_pb2.ResumeRolloutRequest())
        assert resumed.status.state == fleet_pb2.ROLLOUT_STATE_CANARY
        await stub.AbortRollout(fleet_pb2.AbortRolloutRequest(reason="had enough"))
        async for _ in stub.WatchRollout(fleet_pb2.WatchRolloutRequest()):
            pass
        return await stub.GetResult(fleet_pb2.GetResultRequest())

    result = with_stub(client, speed=5)
    assert result.state == fleet_pb2.ROLLOUT_STATE_ABORTED
    assert result.why == "had enough"
    assert json.loads(result.result_json)["hosts"]["skipped"] == 5


def test_a_reason_is_one_line_of_bearable_length() -> None:
    """It comes from anywhere, and goes to the terminal of whoever serves, and into every status."""

    async def client(stub: Stub) -> tuple[str, str]:
        await stub.StartRollout(fleet_pb2.StartRolloutRequest())
        pause = fleet_pb2.PauseRolloutRequest(reason="\x1b[2Jfor\n\nlunch\0é")
        paused = (await stub.PauseRollout(pause)).status.why
        abort = fleet_pb2.AbortRolloutRequest(reason="x" * 1_000_000)
        return paused, (await stub.AbortRollout(abort)).status.why

    assert with_stub(client, speed=5) == ("[2Jfor lunch é", "x" * 500 + " …")


def test_a_paused_rollout_shows_that_it_is() -> None:
    async def client(stub: Stub) -> None:
        await stub.StartRollout(fleet_pb2.StartRolloutRequest())
        watching = stub.WatchRollout(fleet_pb2.WatchRolloutRequest())
        await stub.PauseRollout(fleet_pb2.PauseRolloutRequest())
        async for message in watching:
            if message.status.state == fleet_pb2.ROLLOUT_STATE_PAUSED:
                break
        watching.cancel()

    with_stub(client, speed=1)


def test_metrics_are_served_beside_it() -> None:
    async def client(endpoints: Endpoints) -> str:
        url = f"http://{endpoints.metrics}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        assert isinstance(text, str)
        return text

    text = served(client, SIX_HOSTS, ToyBackend(), start=True)
    assert "lufleet_virtual_time_seconds" in text
