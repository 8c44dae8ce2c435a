"""What `lufleet serve` runs: a living fleet behind one gRPC address and one for metrics.

The gRPC address serves `FleetService`, `HostService` for every host, health and reflection; the
other one `/metrics`, once the hosts are up. It goes on after the rollout has ended, until it is
told to stop.

Unhappy paths: an address that cannot be listened on ends it before any client was answered. A
simulator that fails ends it with that error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from msgspec import Struct

from fleet.api import RolloutState, RunRecord
from fleet.exporter import MetricsServer
from fleet.fleet_service import FLEET_SERVICE, Fleet
from fleet.fleet_service import add_to as add_fleet_service
from fleet.journal import Journal
from fleet.launcher import Backend
from fleet.scenario import Scenario
from node.grpc_server import AddressInUse, check_free, start_server
from node.servicer import HOST_SERVICE
from node.servicer import add_to as add_host_service

__all__ = ["BadAddress", "Endpoints", "Served", "serve", "split_address"]

#: How long streams have to end after the server was told to stop.
_GRACE_SECONDS = 1.0


class BadAddress(ValueError):
    """Not of the form HOST:PORT."""


class Endpoints(Struct, frozen=True):
    """Where a served fleet listens, as HOST:PORT."""

    grpc: str
    metrics: str


class Served(Struct, frozen=True):
    """How a fleet stood when it was told to stop."""

    state: RolloutState
    record: RunRecord | None  # what came of the rollout; None if it was not started or not over
    was_up: bool = True  # whether it ever listened


def split_address(address: str) -> tuple[str, int]:
    """The host and the port of "HOST:PORT"; an IPv6 host stands in brackets.

    Raises:
        BadAddress: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BadAddress(f"{address!r} is no HOST:PORT, like 127.0.0.1:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _with_port(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}"


async def serve(
    scenario: Scenario,
    backend: Backend,
    journal: Journal,
    stop: asyncio.Event,
    *,
    grpc_address: str = "127.0.0.1:50051",
    metrics_address: str = "127.0.0.1:9464",
    actors: int | str | None = None,
    speed: float | None = None,
    start: bool = False,
    on_ready: Callable[[Endpoints], None] = lambda _: None,
    on_over: Callable[[RunRecord], None] = lambda _: None,
) -> Served:
    """Serve a fleet until `stop` is set. Backend and journal belong to the caller.

    Args:
        scenario: The fleet and its rollout.
        backend: Where the shards run.
        journal: Where changes are written down.
        stop: Ends it.
        grpc_address: HOST:PORT; port 0 lets the system choose.
        metrics_address: As grpc_address.
        actors: Number of shards, "per-host", or None for what suits the fleet.
        speed: Virtual seconds a wall second; None lets the rollout run freely.
        start: Start the rollout at once. One that the journal has under way goes on anyhow.
        on_ready: Is told where the servers listen.
        on_over: Is told what came of the rollout, once it has ended.

    Returns:
        How it stood then.

    Raises:
        BadAddress, AddressInUse: an address is none, or cannot be listened on.
        ModelBug: the simulator is wrong.
        HostUnreachable: a shard cannot be kept alive.
        CannotWrite: the journal cannot be written any more.
    """
    check_free(grpc_address, *split_address(grpc_address))  # not after all hosts have booted
    metrics_host, metrics_port = split_address(metrics_address)
    fleet = Fleet(scenario, backend, journal, actors=actors, speed=speed, on_over=on_over)
    async with AsyncExitStack() as stack:
        try:
            metrics = MetricsServer(
                lambda: fleet.experiment.snapshot, metrics_host, metrics_port, lambda: fleet.is_up
            )
        except OSError as error:
            raise AddressInUse(f"cannot listen on {metrics_address}: {error}") from None
        stack.enter_context(metrics)
        stack.push_async_callback(fleet.close)
        if not await _opened(fleet, stop):
            return Served(fleet.experiment.coordinator.state, None, was_up=False)
        server, grpc_port = await start_server(
            grpc_address,
            {
                FLEET_SERVICE: lambda server: add_fleet_service(server, fleet),
                HOST_SERVICE: lambda server: add_host_service(server, fleet.hosts),
            },
        )
        stack.push_async_callback(server.stop, _GRACE_SECONDS)
        if start and fleet.rollout is None:
            fleet.start()
        grpc_at = _with_port(grpc_address, grpc_port)
        on_ready(Endpoints(grpc=grpc_at, metrics=_with_port(metrics_address, metrics.port)))
        await _until(stop, fleet)
        state = fleet.experiment.coordinator.state
        return Served(state, fleet.record() if fleet.is_over else None)


async def _opened(fleet: Fleet, stop: asyncio.Event) -> bool:
    """Boot the hosts; whether they are up, and nobody set `stop` before."""
    opening = asyncio.ensure_future(fleet.open())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        either: set[asyncio.Future[Any]] = {opening, stopping}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
        return opening.done()
    finally:
        stopping.cancel()
        opening.cancel()


async def _until(stop: asyncio.Event, fleet: Fleet) -> None:
    """Return when `stop` is set; a rollout that breaks off raises what broke it."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        either: set[asyncio.Future[Any]] = {stopping, fleet.broken}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if fleet.broken.done():
            fleet.broken.result()
    finally:
        stopping.cancel()
