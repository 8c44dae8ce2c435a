"""What a call of HostService costs, from a client through a served fleet to a host and back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from threading import Event, Thread

import grpc
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fleet.launcher import LocalBackend
from fleet.server import Endpoints
from lufleet.v1 import host_pb2, host_pb2_grpc
from tests.e2e.served import served
from tests.e2e.test_grpc_hosts import FLEET, HOSTS

HOST, VM = HOSTS[0], f"{HOSTS[0]}-plain"


@pytest.fixture(scope="module")
def stub() -> Iterator[host_pb2_grpc.HostServiceStub]:
    """A blocking client of a fleet that is served in another thread."""
    addresses: list[str] = []
    is_ready, is_done = Event(), Event()

    async def client(endpoints: Endpoints) -> None:
        addresses.append(endpoints.grpc)
        is_ready.set()
        await asyncio.to_thread(is_done.wait)

    serving = Thread(target=lambda: served(client, FLEET, LocalBackend()))
    serving.start()
    is_ready.wait()
    with grpc.insecure_channel(addresses[0]) as channel:
        yield host_pb2_grpc.HostServiceStub(channel)
    is_done.set()
    serving.join()


def test_list_hosts(benchmark: BenchmarkFixture, stub: host_pb2_grpc.HostServiceStub) -> None:
    benchmark(stub.ListHosts, host_pb2.ListHostsRequest())


def test_look_at_a_host(benchmark: BenchmarkFixture, stub: host_pb2_grpc.HostServiceStub) -> None:
    benchmark(stub.GetHost, host_pb2.GetHostRequest(host=HOST))


def test_two_journaled_changes(
    benchmark: BenchmarkFixture, stub: host_pb2_grpc.HostServiceStub
) -> None:
    def pause_and_resume() -> None:
        stub.PauseVm(host_pb2.PauseVmRequest(host=HOST, vm=VM))
        stub.ResumeVm(host_pb2.ResumeVmRequest(host=HOST, vm=VM))

    benchmark(pause_and_resume)
