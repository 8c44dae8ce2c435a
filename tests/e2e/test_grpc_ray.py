"""gRPC with real Ray actors: each serves its hosts, and one that is killed comes back the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.message import Message

from fleet.launcher import Backend, LocalBackend, RayBackend, ShardHandle
from fleet.server import Endpoints
from lufleet.v1 import fleet_pb2, fleet_pb2_grpc, host_pb2, host_pb2_grpc
from node.api import ShardConfig
from node.status import errno_of
from tests.e2e.served import served
from tests.e2e.test_grpc_hosts import FLEET, HOSTS
from tests.node.small_hosts import NEW

if TYPE_CHECKING:
    from lufleet.v1.host_pb2_grpc import HostServiceAsyncStub as Stub

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

HOST = HOSTS[1]
VMS = (f"{HOST}-huge", f"{HOST}-plain")


class KillableRay(RayBackend):
    """Remembers its shards, so that a test can kill their actors."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: list[ShardHandle] = []

    def spawn(self, config: ShardConfig) -> ShardHandle:
        self.handles.append(super().spawn(config))
        return self.handles[-1]

    def kill_all(self) -> None:
        for shard in self._shards:
            shard.kill()


def steps() -> Iterable[Message]:
    """Half an update by hand: up to the jump and one VM back."""
    yield host_pb2.LoadKexecRequest(host=HOST, release=NEW)
    for vm in VMS:
        yield host_pb2.PreserveVmRequest(host=HOST, vm=vm)
        yield host_pb2.PauseVmRequest(host=HOST, vm=vm)
    yield host_pb2.CreateSessionRequest(host=HOST, session=VMS[0])  # refused, and still counts
    yield host_pb2.RebootRequest(host=HOST)
    yield host_pb2.RetrieveSessionRequest(host=HOST, session=VMS[0])
    yield host_pb2.RetrieveFdRequest(host=HOST, session=VMS[0], token=1, vm=VMS[0])


async def take(stub: Stub, step: Message) -> str:
    """Take one step; the errno if it is refused."""
    method = type(step).__name__.removesuffix("Request")
    try:
        if method == "Reboot":
            async for _ in stub.Reboot(step):  # type: ignore[arg-type] # one of many messages
                pass
        else:
            await getattr(stub, method)(step)
    except grpc.aio.AioRpcError as error:
        return errno_of(error) or str(error.code())
    return ""


def digests(backend: Backend, kill_before: int = -1) -> tuple[str, str]:
    """Digest of the host after the steps, and of the rollout after that.

    Before step `kill_before` every actor is killed.
    """

    async def client(endpoints: Endpoints) -> tuple[str, str]:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            for number, step in enumerate(steps()):
                if number == kill_before and isinstance(backend, KillableRay):
                    backend.kill_all()
                refused = await take(stub, step)
                is_second = isinstance(step, host_pb2.CreateSessionRequest)
                assert refused == ("EEXIST" if is_second else "")
            look = await stub.GetHost(host_pb2.GetHostRequest(host=HOST))
            fleet = fleet_pb2_grpc.FleetServiceStub(channel)
            await fleet.StartRollout(fleet_pb2.StartRolloutRequest())
            async for _ in fleet.WatchRollout(fleet_pb2.WatchRolloutRequest()):
                pass
            result = await fleet.GetResult(fleet_pb2.GetResultRequest())
            return look.host.digest, result.digest

    return served(client, FLEET, backend, actors=2)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[str, str]:
    return digests(LocalBackend())


@pytest.mark.parametrize("kill_before", [0, 4, len(list(steps())) - 1])
def test_an_actor_that_is_killed_between_calls_comes_back_the_same(
    undisturbed: tuple[str, str], kill_before: int
) -> None:
    assert digests(KillableRay(), kill_before) == undisturbed


def test_every_actor_serves_its_own_hosts_at_an_address_that_the_fleet_knows() -> None:
    async def client(endpoints: Endpoints) -> None:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            fleet = fleet_pb2_grpc.FleetServiceStub(channel)
            shards = (await fleet.ListShards(fleet_pb2.ListShardsRequest())).shards
        assert sorted(name for shard in shards for name in shard.hosts) == sorted(HOSTS)
        assert len({shard.address for shard in shards}) == len(HOSTS)
        for shard in shards:
            async with grpc.aio.insecure_channel(shard.address) as channel:
                stub: Stub = host_pb2_grpc.HostServiceStub(channel)
                names = (await stub.ListHosts(host_pb2.ListHostsRequest())).names
                assert list(names) == list(shard.hosts)
                for name in names:
                    look = await stub.GetHost(host_pb2.GetHostRequest(host=name))
                    assert look.host.spec.name == name

    served(client, FLEET, KillableRay())


def test_a_client_of_an_actor_that_dies_is_told_that_it_is_unavailable() -> None:
    async def client(endpoints: Endpoints) -> grpc.StatusCode:
        del endpoints
        address = await backend.handles[0].call("grpc_address")
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            watching = stub.WatchEvents(host_pb2.WatchEventsRequest(host=HOSTS[0]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 - it is the loop that breaks off
                async for _ in watching:
                    backend.kill_all()
            return caught.value.code()

    backend = KillableRay()
    assert served(client, FLEET, backend) is grpc.StatusCode.UNAVAILABLE
