"""HostService over a real connection, with hosts that answer what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kernelmodel.errors import ModelBug
from kernelmodel.sim.trace import Trace
from lufleet.v1 import host_pb2, host_pb2_grpc
from node.calls import HostReply, Refusal
from node.grpc_server import NotHere, start_server
from node.servicer import HOST_SERVICE, add_to
from node.status import errno_of, error_info_of
from node.watchers import EventQueue, Watchers

if TYPE_CHECKING:
    from lufleet.v1.host_pb2_grpc import HostServiceAsyncStub as Stub

_T = TypeVar("_T")


class SaidHosts:
    """Hosts h1, h2 and h3, which answer every call as they were told to."""

    def __init__(self, answer: HostReply | Exception | None = None) -> None:
        self.answer = answer or HostReply(0, 5)
        self.calls: list[tuple[str, str, bytes]] = []
        self.paces: list[tuple[int, int]] = []
        self.watchers = Watchers()

    def names(self) -> Sequence[str]:
        return ("h1", "h2", "h3")

    async def call(self, host: str, method: str, request: bytes) -> HostReply:
        self.calls.append((host, method, request))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def pace(self, from_ns: int, to_ns: int) -> None:
        self.paces.append((from_ns, to_ns))

    def watch(self, host: str) -> AbstractContextManager[EventQueue]:
        if host not in self.names():
            raise NotHere(grpc.StatusCode.NOT_FOUND, "NO_SUCH_HOST", f"no host {host!r}")
        return self.watchers.watch(host)


def served(hosts: SaidHosts, client: Callable[[grpc.aio.Channel], Awaitable[_T]]) -> _T:
    """What `client` returns, run against a server with these hosts."""

    async def run() -> _T:
        server, port = await start_server(
            "127.0.0.1:0", {HOST_SERVICE: lambda server: add_to(server, hosts)}
        )
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await client(channel)
        finally:
            await server.stop(None)

    return asyncio.run(run())


def failure(answer: HostReply | Exception) -> grpc.aio.AioRpcError:
    """What a client gets that pauses a VM."""

    async def client(channel: grpc.aio.Channel) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await host_pb2_grpc.HostServiceStub(channel).PauseVm(
                host_pb2.PauseVmRequest(host="h1", vm="v")
            )
        return caught.value

    return served(SaidHosts(answer), client)


def test_a_kernels_refusal_carries_its_errno_and_context() -> None:
    refusal = Refusal("token is already used", errno="EEXIST", context={"token": "7"})
    error = failure(HostReply(0, 5, refusal=refusal))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert errno_of(error) == "EEXIST"
    info = error_info_of(error)
    assert info is not None
    assert (info.metadata["errno"], info.metadata["token"]) == ("17", "7")
    assert "token is already used" in (error.details() or "")


def test_misuse_is_a_failed_precondition_without_errno() -> None:
    error = failure(HostReply(0, 5, refusal=Refusal("v is paused", reason="HOST_STATE")))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert errno_of(error) is None
    info = error_info_of(error)
    assert info is not None
    assert info.reason == "HOST_STATE"


def test_what_is_not_here_says_so() -> None:
    error = failure(NotHere(grpc.StatusCode.UNAVAILABLE, "HOST_UNREACHABLE", "its actor died"))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "its actor died")


def test_a_bug_of_the_model_names_the_call_that_found_it() -> None:
    error = failure(ModelBug("two owners of page 7"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "PauseVm on h1: two owners of page 7"


def test_every_rpc_about_a_host_reaches_it_under_its_name() -> None:
    hosts = SaidHosts()
    service = host_pb2.DESCRIPTOR.services_by_name["HostService"]
    about_one = [m for m in service.methods if m.name not in ("ListHosts", "WatchEvents")]

    async def client(channel: grpc.aio.Channel) -> None:
        stub = host_pb2_grpc.HostServiceStub(channel)
        for method in about_one:
            call = getattr(stub, method.name)
            request = getattr(host_pb2, f"{method.name}Request")(host="h2")
            if method.server_streaming:
                assert [step async for step in call(request)]
            else:
                await call(request)

    served(hosts, client)
    assert [(host, name) for host, name, _ in hosts.calls] == [("h2", m.name) for m in about_one]


def test_the_request_arrives_whole() -> None:
    hosts = SaidHosts(
        HostReply(0, 5, host_pb2.RetrieveFdResponse(content_intact=True).SerializeToString())
    )
    request = host_pb2.RetrieveFdRequest(host="h1", session="s", token=2**64 - 1, vm="v")

    async def client(channel: grpc.aio.Channel) -> host_pb2.RetrieveFdResponse:
        return await host_pb2_grpc.HostServiceStub(channel).RetrieveFd(request)

    assert served(hosts, client).content_intact
    assert host_pb2.RetrieveFdRequest.FromString(hosts.calls[0][2]) == request


def events(*instants: int) -> bytes:
    trace = Trace("host/h1", record=True)
    for nr, now_ns in enumerate(instants):
        trace.emit(now_ns, f"event{nr}", number=-3, text="t", data=b"d", flag=True)
    return trace.take_events()


def test_a_long_operation_streams_its_events_in_time_and_then_its_outcome() -> None:
    outcome = host_pb2.RebootOutcome(release="7.3.4")
    hosts = SaidHosts(
        HostReply(
            100,
            900,
            host_pb2.RebootResponse(outcome=outcome).SerializeToString(),
            events=events(100, 400),
        )
    )

    async def client(channel: grpc.aio.Channel) -> list[host_pb2.RebootResponse]:
        stub: Stub = host_pb2_grpc.HostServiceStub(channel)
        return [step async for step in stub.Reboot(host_pb2.RebootRequest(host="h1"))]

    *steps, last = served(hosts, client)
    assert last.outcome == outcome
    assert [(s.event.name, s.event.virtual_time_ns) for s in steps] == [
        ("event0", 100),
        ("event1", 400),
    ]
    fields = steps[0].event.fields
    assert (fields["number"].number, fields["text"].text) == (-3, "t")
    assert (fields["data"].data, fields["flag"].flag) == (b"d", True)
    assert hosts.paces == [(100, 100), (100, 400), (400, 900)]


def test_hosts_are_listed_in_pages() -> None:
    async def client(channel: grpc.aio.Channel) -> list[list[str]]:
        stub: Stub = host_pb2_grpc.HostServiceStub(channel)
        request = host_pb2.ListHostsRequest(page_size=2)
        pages = []
        while True:
            page = await stub.ListHosts(request)
            pages.append([*page.names])
            if not page.next_page_token:
                return pages
            request.page_token = page.next_page_token

    assert served(SaidHosts(), client) == [["h1", "h2"], ["h3"]]


def test_a_watcher_hears_what_it_asked_for_from_the_first_message_on() -> None:
    hosts = SaidHosts()

    async def client(channel: grpc.aio.Channel) -> list[str]:
        stub: Stub = host_pb2_grpc.HostServiceStub(channel)
        request = host_pb2.WatchEventsRequest(host="h1", names=["event0", "event2"])
        heard = []
        watching = stub.WatchEvents(request)
        async for message in watching:
            if message.HasField("event"):
                heard.append(message.event.name)
            else:
                hosts.watchers.answered("h2", HostReply(0, 1, events=events(1)))
                hosts.watchers.answered("h1", HostReply(0, 3, events=events(1, 2, 3)))
            if len(heard) == 2:
                watching.cancel()
                return heard
        return heard

    assert served(hosts, client) == ["event0", "event2"]


def test_an_unknown_host_cannot_be_watched() -> None:
    async def client(channel: grpc.aio.Channel) -> grpc.StatusCode:
        stub: Stub = host_pb2_grpc.HostServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.WatchEvents(host_pb2.WatchEventsRequest(host="h9")):
                pass
        return caught.value.code()

    assert served(SaidHosts(), client) is grpc.StatusCode.NOT_FOUND


def test_health_and_reflection_are_on() -> None:
    async def client(channel: grpc.aio.Channel) -> tuple[int, set[str]]:
        health: Any = health_pb2_grpc.HealthStub(channel)
        check = await health.Check(health_pb2.HealthCheckRequest(service=HOST_SERVICE))
        anything: Any = channel  # the stubs know sync channels only
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(anything)
        asking = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="*")])
        )
        names = {
            service.name
            async for answer in asking
            for service in answer.list_services_response.service
        }
        return check.status, names

    status, names = served(SaidHosts(), client)
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert names == {
        HOST_SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
