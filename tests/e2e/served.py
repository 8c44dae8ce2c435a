"""A served fleet for the time of one test, in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc

from fleet.journal import Journal, journal_header
from fleet.launcher import Backend
from fleet.scenario import Scenario
from fleet.server import Endpoints, serve

_T = TypeVar("_T")


def served(
    client: Callable[[Endpoints], Awaitable[_T]],
    scenario: Scenario,
    backend: Backend,
    *,
    journal_path: Path | None = None,
    resume: bool = False,
    actors: int | None = None,
    speed: float | None = None,
    start: bool = False,
) -> _T:
    """What `client` returns, run against the fleet of `scenario`.

    Raises:
        Exception: what `client` raises, or what broke the server.
    """

    async def run() -> _T:
        stop = asyncio.Event()
        ready: asyncio.Future[Endpoints] = asyncio.get_running_loop().create_future()
        header = journal_header(scenario, records_events=False)
        if resume:
            assert journal_path is not None
            opened = Journal.resume(journal_path, header)
        else:
            opened = Journal.create(journal_path, header)
        with opened as journal:
            serving = asyncio.ensure_future(
                serve(
                    scenario,
                    backend,
                    journal,
                    stop,
                    grpc_address="127.0.0.1:0",
                    metrics_address="127.0.0.1:0",
                    actors=actors,
                    speed=speed,
                    start=start,
                    on_ready=ready.set_result,
                )
            )
            try:
                either: set[asyncio.Future[Any]] = {ready, serving}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                return await client(ready.result())
            finally:
                stop.set()
                await serving
                await backend.close()

    return asyncio.run(run())


async def blocking(client: Callable[[grpc.Channel], _T], address: str) -> _T:
    """What a client returns that blocks, run in a thread with a connection to `address`."""

    def work() -> _T:
        with grpc.insecure_channel(address) as channel:
            return client(channel)

    return await asyncio.to_thread(work)
