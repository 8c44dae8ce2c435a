"""A shard as an actor: a gRPC server beside the methods that the coordinator calls.

The class is plain; `fleet.launcher` makes a Ray actor of it, so that nobody here has to load Ray.
One thread of its own computes for the shard, in the order of the calls; the event loop stays free
for gRPC and for whoever asks whether the actor lives.

Its HostService shows the hosts and their events. It does not change them: a change has to be in the
fleet's journal before it is acknowledged, or an actor that is rebuilt would come back as another
one, and the journal lies with the coordinator. `lufleet serve` answers for every host under one
address; that is where changes go.
"""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from inspect import isawaitable
from typing import Any, TypeVar

import grpc

from node.api import HostCall, HostGauges, ShardConfig, UpdateCommand, UpdateResult
from node.calls import READING, HostReply
from node.code import code_digest
from node.grpc_server import NotHere, Server, start_server
from node.servicer import HOST_SERVICE, add_to
from node.shard import Shard
from node.watchers import EventQueue, Watchers

__all__ = ["ShardActor", "collecting_seldom"]

_T = TypeVar("_T")


class ShardActor:
    """One shard, its gRPC server, and the thread on which the shard computes.

    The methods are those of `node.shard.Shard`, awaitable, and a few that an actor has of its own.
    The coordinator calls them through `ask`. `own_address` tells where to serve, if that is not for
    this machine alone.
    """

    def __init__(self, config: ShardConfig, own_address: Callable[[], str] | None = None) -> None:
        self._collecting = ExitStack()
        self._collecting.enter_context(collecting_seldom())
        self._config = config
        self._address = own_address() if own_address is not None else "127.0.0.1"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard")
        self._shard: Shard | None = None
        self._server: asyncio.Task[tuple[Server, int]] | None = None
        self._watchers = Watchers()

    async def ask(self, method: str, *args: object) -> tuple[int, object]:
        """Call a method. Returns which incarnation of the shard this is, and the answer."""
        answer = getattr(self, method)(*args)
        return self._config.incarnation, await answer if isawaitable(answer) else answer

    async def update(self, commands: list[UpdateCommand]) -> list[UpdateResult]:
        """Update hosts."""
        results = await self._compute(lambda shard: shard.update(commands))
        for result in results:
            self._watchers.updated(result)
        return results

    async def call_host(self, call: HostCall) -> HostReply:
        """Carry out a call of HostService, which the coordinator has journaled."""
        reply = await self._compute(lambda shard: shard.call_host(call))
        self._watchers.answered(call.host, reply)
        return reply

    async def gauges(self, names: Sequence[str]) -> dict[str, HostGauges]:
        """The counters of some hosts."""
        return await self._compute(lambda shard: shard.gauges(names))

    async def grpc_address(self) -> str:
        """Where this actor's HostService listens."""
        _, port = await self._serve()
        return f"{self._address}:{port}"

    def is_there(self) -> bool:
        """Yes; said while it computes, too."""
        return True

    def code(self) -> tuple[str, str]:
        """The address of this node, and a digest of the code that simulates here."""
        return self._address, code_digest()

    async def peak_rss_bytes(self) -> int:
        """The most memory that this process has had resident."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    async def close(self) -> None:
        """Stop serving and computing."""
        if self._server is not None:
            server, _ = await self._server
            await server.stop(None)
        self._thread.shutdown()
        self._collecting.close()

    async def _serve(self) -> tuple[Server, int]:
        """The running server; the first call of any method starts it."""
        if self._server is None:
            hosts = _OwnHosts(self._config, self.call_host, self._watchers)
            self._server = asyncio.ensure_future(
                start_server(
                    f"{self._address}:0", {HOST_SERVICE: lambda server: add_to(server, hosts)}
                )
            )
        return await self._server

    async def _compute(self, work: Callable[[Shard], _T]) -> _T:
        """What `work` returns; it is in line before anything is waited for, so calls keep order."""
        computed = asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)
        await self._serve()
        return await computed

    def _work(self, work: Callable[[Shard], _T]) -> _T:
        if self._shard is None:
            self._shard = Shard(self._config)
        return work(self._shard)


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Let the garbage collector look every few hosts, not many times in each update.

    It finds next to nothing: kernels that are gone have been taken apart. What this process has
    loaded by now stays and need not be looked at again.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


class _OwnHosts:
    """The hosts of one shard, for looking at."""

    def __init__(
        self, config: ShardConfig, ask: Callable[[HostCall], Any], watchers: Watchers
    ) -> None:
        self._names = [host.name for host in config.hosts]
        self._ask = ask
        self._watchers = watchers

    def names(self) -> Sequence[str]:
        return self._names

    async def call(self, host: str, method: str, request: bytes) -> HostReply:
        self._check(host)
        if method not in READING:
            raise NotHere(
                grpc.StatusCode.FAILED_PRECONDITION,
                "NOT_JOURNALED",
                f"{method} changes {host}: send it to the fleet's address, where it is journaled",
            )
        reply: HostReply = await self._ask(HostCall(host, 0, method, request))
        return reply

    async def pace(self, from_ns: int, to_ns: int) -> None:
        """Here time is nobody's concern."""

    def watch(self, host: str) -> AbstractContextManager[EventQueue]:
        self._check(host)
        return self._watchers.watch(host)

    def _check(self, host: str) -> None:
        if host not in self._names:
            code = grpc.StatusCode.NOT_FOUND
            raise NotHere(code, "NO_SUCH_HOST", f"no host {host!r} in this shard")
