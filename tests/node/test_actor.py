"""The actor's class without Ray: it computes for the coordinator and shows its hosts over gRPC."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, TypeVar

import grpc
import pytest

import node
from lufleet.v1 import host_pb2, host_pb2_grpc
from node.actor import ShardActor
from node.api import UpdateCommand, UpdatePolicy
from node.code import code_digest, digest_of
from node.shard import Shard
from node.status import error_info_of
from tests.node.small_hosts import NEW, OLD, host_call, shard_config

if TYPE_CHECKING:
    from lufleet.v1.host_pb2_grpc import HostServiceAsyncStub as Stub

_T = TypeVar("_T")
COMMAND = UpdateCommand("h1", 1, 0, NEW, UpdatePolicy())


def with_actor(
    client: Callable[[ShardActor, Stub], Awaitable[_T]], *, record_events: bool = False
) -> _T:
    """What `client` returns, with an actor of two hosts and a connection to it."""

    async def run() -> _T:
        actor = ShardActor(shard_config("h1", "h2", record_events=record_events))
        try:
            async with grpc.aio.insecure_channel(await actor.grpc_address()) as channel:
                return await client(actor, host_pb2_grpc.HostServiceStub(channel))
        finally:
            await actor.close()

    return asyncio.run(run())


def test_it_answers_like_the_shard_that_it_holds() -> None:
    async def client(actor: ShardActor, stub: Stub) -> None:
        del stub
        shard = Shard(shard_config("h1", "h2"))
        assert await actor.gauges(["h2"]) == shard.gauges(["h2"])
        call = host_call(host_pb2.PauseVmRequest(host="h2", vm="h2-plain"))
        assert await actor.call_host(call) == shard.call_host(call)
        assert await actor.update([COMMAND]) == shard.update([COMMAND])
        assert await actor.peak_rss_bytes() > 1 << 20

    with_actor(client)


def test_it_says_which_code_it_runs(tmp_path: Path) -> None:
    async def client(actor: ShardActor, stub: Stub) -> tuple[int, object]:
        del stub
        return await actor.ask("code")

    assert with_actor(client) == (0, ("127.0.0.1", code_digest()))
    packages = tmp_path / "node", tmp_path / "kernelmodel"
    for copy in packages:
        copytree(Path(node.__file__).parents[1] / copy.name, copy)
    assert digest_of(packages) == code_digest()
    costs = tmp_path / "kernelmodel/sim/profiles/default.toml"
    costs.write_text(costs.read_text().replace("9", "8", 1))
    assert digest_of(packages) != code_digest()


def test_it_computes_in_the_order_of_the_calls_while_its_server_starts() -> None:
    """A rebuilt actor is asked at once for all that is not settled, and for more meanwhile."""

    async def run() -> list[str]:
        actor = ShardActor(shard_config("h1"))
        calls: list[asyncio.Task[object]] = []
        starting: asyncio.Task[str] | None = None
        while len(calls) < 10 or starting is None or not starting.done():
            name = f"s{len(calls)}"
            call = host_call(host_pb2.CreateSessionRequest(host="h1", session=name))
            calls.append(asyncio.ensure_future(actor.ask("call_host", call)))
            if starting is None:
                starting = asyncio.ensure_future(actor.grpc_address())
            await asyncio.sleep(0)
        await asyncio.gather(*calls)
        look = host_call(host_pb2.GetHostRequest(host="h1"))
        reply = host_pb2.GetHostResponse.FromString((await actor.call_host(look)).response)
        await actor.close()
        return [session.name for session in reply.host.sessions]

    names = asyncio.run(run())
    assert names == [f"s{nr}" for nr in range(len(names))]


def test_its_hosts_can_be_looked_at() -> None:
    async def client(actor: ShardActor, stub: Stub) -> None:
        names = await stub.ListHosts(host_pb2.ListHostsRequest())
        assert [*names.names] == ["h1", "h2"]
        before = await stub.GetHost(host_pb2.GetHostRequest(host="h1"))
        await actor.update([COMMAND])
        after = await stub.GetHost(host_pb2.GetHostRequest(host="h1"))
        assert (before.host.release, after.host.release) == (OLD, NEW)
        text = await stub.ReadDebugfs(host_pb2.ReadDebugfsRequest(host="h1", path="proc/cmdline"))
        assert "liveupdate=on" in text.text

    with_actor(client)


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (
            host_pb2.PauseVmRequest(host="h1", vm="h1-huge"),
            grpc.StatusCode.FAILED_PRECONDITION,
            "NOT_JOURNALED",
        ),
        (
            host_pb2.PauseVmRequest(host="h9", vm="h1-huge"),
            grpc.StatusCode.NOT_FOUND,
            "NO_SUCH_HOST",
        ),
    ],
)
def test_changes_go_to_the_fleets_address(
    request_: host_pb2.PauseVmRequest, code: grpc.StatusCode, reason: str
) -> None:
    async def client(actor: ShardActor, stub: Stub) -> None:
        before = await stub.GetHost(host_pb2.GetHostRequest(host="h1"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PauseVm(request_)
        info = error_info_of(caught.value)
        assert info is not None
        assert (caught.value.code(), info.reason) == (code, reason)
        assert await stub.GetHost(host_pb2.GetHostRequest(host="h1")) == before
        del actor

    with_actor(client)


def test_it_answers_while_it_computes() -> None:
    async def client(actor: ShardActor, stub: Stub) -> None:
        updating = asyncio.ensure_future(actor.update([COMMAND]))
        names = await stub.ListHosts(host_pb2.ListHostsRequest())
        assert len(names.names) == 2
        await updating

    with_actor(client)


def test_a_watcher_hears_what_an_update_does() -> None:
    async def client(actor: ShardActor, stub: Stub) -> list[str]:
        watching = stub.WatchEvents(host_pb2.WatchEventsRequest(host="h1"))
        heard = []
        async for message in watching:
            if not message.HasField("event"):
                await actor.update([COMMAND])
                continue
            heard.append(message.event.name)
            if heard[-1] == "update_done":
                break
        watching.cancel()
        return heard

    heard = with_actor(client, record_events=True)
    assert "jump" in heard
    assert heard.index("update") < heard.index("jump")


def test_closed_it_leaves_the_garbage_collector_as_it_was() -> None:
    async def client(actor: ShardActor, stub: Stub) -> tuple[int, int]:
        del actor, stub
        return gc.get_freeze_count(), gc.get_threshold()[0]

    before = gc.get_freeze_count(), gc.get_threshold()
    frozen, threshold = with_actor(client)
    assert frozen > before[0]
    assert threshold > before[1][0]
    assert (gc.get_freeze_count(), gc.get_threshold()) == before
