"""A Ray of several nodes on this machine, and ways to strike at it in the midst of a run.

Nothing is left to the wall clock. An actor that is to die while it computes is told to stop at its
n-th Python call and say who it is; one that is to die at its start stops in its constructor. Both
wait for good, and SIGKILL from outside, or the end of their node, is what they get.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from fleet.launcher import RayBackend, ShardHandle
from fleet.shard_actor import Deed
from node.api import ShardConfig

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

#: Ray takes a quarter of a minute to notice that a node is gone, unless told to be quick. A node
#: that is merely busy, or still coming up, must not be taken for one.
QUICK = {
    "health_check_initial_delay_ms": 3_000,
    "health_check_period_ms": 100,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 5,
}


@contextmanager
def ray_nodes(*cpus: int, head_cpus: int = 0) -> Iterator[Cluster]:
    """A cluster with a head and nodes with so many CPUs, and this process connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    head = {**node_args(head_cpus), "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for count in cpus:
            cluster.add_node(**node_args(count))
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def mend(cluster: Cluster, nodes: int = 2) -> None:
    """Have so many nodes beside the head: wait for those on their way, replace dead ones."""
    while True:
        for node in [node for node in cluster.worker_nodes if node.dead_processes()]:
            cluster.remove_node(node, allow_graceful=False)
        while len(cluster.worker_nodes) < nodes:
            add_node(cluster)
        if alive_nodes().issuperset(node.node_id for node in cluster.worker_nodes):
            return
        with suppress(TimeoutError):
            cluster.wait_for_nodes(timeout=1)


def alive_nodes() -> set[str]:
    """Nodes that the cluster counts on."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {str(node["NodeID"]) for node in nodes if node["Alive"]}


def add_node(cluster: Cluster) -> None:
    """A node that comes when it comes: Ray gives up on one that takes half a minute."""
    try:
        cluster.add_node(wait=False, **node_args(1))
    except Exception as late:
        if "timed out during startup" not in str(late):
            raise


def node_args(cpus: int) -> dict[str, Any]:
    """What a node of a test is started with."""
    return {"num_cpus": cpus, "object_store_memory": 80 << 20}


def node_of(_: object) -> str:
    """Which node this runs on; to be called in an actor."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def pid_of(_: object) -> int:
    """To be called in an actor."""
    return os.getpid()


class Line:
    """A pipe with a name, on which processes of this machine say who they are."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    async def hear(self, asking: asyncio.Future[Any]) -> int:
        """The next process that is on the line; to be heard before `asking` ends."""
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._end, heard.set)
        hearing = asyncio.ensure_future(heard.wait())
        try:
            await asyncio.wait({asking, hearing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(self._end)
            hearing.cancel()
        assert heard.is_set(), f"nobody stopped: {asking}"
        return int(os.read(self._end, 16))

    def close(self) -> None:
        os.close(self._end)


class StopAtStart:
    """In place of an actor's look for its address: says who it is, and waits to be killed."""

    def __init__(self, line: Line) -> None:
        self.path = line.path

    def __call__(self) -> str:
        return say_and_wait(self.path)


def stop_at_call(actor: Any, path: str, number: int) -> None:
    """To be called in an actor: it stops computing at the `number`th Python call from here on."""
    left = number

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal left
        left -= event == "call"
        if left == 0:
            say_and_wait(path)

    actor._thread.submit(sys.setprofile, count)


def say_and_wait(path: str) -> str:
    Path(path).write_bytes(b"%16d" % os.getpid())
    threading.Event().wait()
    return "unreachable"


class Blow(Struct, frozen=True):
    """What strikes at a message of a run."""

    loses_node: bool = False  # the node with the actor that is computing, else this actor alone
    at_call: int = 0  # in the midst of computing; 0: before the message is sent
    hangs: bool = False  # the actor is stopped and not killed
    successors: int = 0  # so many of those that take over die at their start


class StruckRay(RayBackend):
    """Actors on a cluster of a test, and what strikes at which of the run's updates."""

    batch = 1  # so that an actor has a second message while it computes one

    def __init__(self, cluster: Cluster, folder: Path, blows: Mapping[int, Blow]) -> None:
        super().__init__(cluster.address)
        self.cluster = cluster
        self.folder = folder
        self.blows = dict(blows)
        self.messages = 0
        self.deaths = 0
        self.striking = asyncio.Lock()  # no call may be struck so often that its shard is given up
        self.stopping: dict[str, Line] = {}  # first host -> where its actors stop at their start

    def spawn(self, config: ShardConfig) -> ShardHandle:
        return StruckShard(self, super().spawn(config))

    def start(self, config: ShardConfig, *, squeezed: bool) -> Any:
        before = self._own_address
        if (line := self.stopping.get(config.hosts[0].name)) is not None:
            self._own_address = StopAtStart(line)
        try:
            return super().start(config, squeezed=squeezed)
        finally:
            self._own_address = before

    async def kill_at_start(self, host: str, asking: asyncio.Future[Any], times: int = 1) -> None:
        """SIGKILL for so many actors that stop at their start, in the shard with this first host.

        The one after them does not stop.
        """
        for left in reversed(range(times)):
            pid = await self.stopping[host].hear(asking)
            if not left:
                self.stopping.pop(host).close()
            self.kill_pid(pid)

    def kill_pid(self, pid: int, how: signal.Signals = signal.SIGKILL) -> None:
        os.kill(pid, how)
        self.deaths += 1

    def lose_node(self, node_id: str) -> None:
        """A node is gone from one moment to the next, with all that runs there.

        Another one is on its way, and comes when it comes.
        """
        (node,) = [n for n in self.cluster.worker_nodes if n.node_id == node_id]
        self.cluster.remove_node(node, allow_graceful=False)
        add_node(self.cluster)
        self.deaths += 1


class StruckShard:
    """A shard's handle that lets a blow fall at the message it is meant for."""

    def __init__(self, backend: StruckRay, shard: ShardHandle) -> None:
        self._backend = backend
        self._shard = shard

    @property
    def hosts(self) -> tuple[str, ...]:
        return self._shard.hosts

    async def call(self, method: str, *args: object, history: Sequence[Deed] = ()) -> Any:
        def asked() -> Awaitable[Any]:
            return self._shard.call(method, *args, history=history)

        if method != "update":
            return await asked()
        self._backend.messages += 1
        blow = self._backend.blows.pop(self._backend.messages, None)
        if blow is None:
            return await asked()
        name = self._backend.folder / f"message-{self._backend.messages}"
        async with self._backend.striking:
            return await self._struck(blow, name, asked)

    async def _struck(self, blow: Blow, name: Path, asked: Callable[[], Awaitable[Any]]) -> Any:
        """The answer of a call at which a blow falls."""
        node, pid = await self.ask(node_of), await self.ask(pid_of)
        if blow.successors:
            self._backend.stopping[self.hosts[0]] = Line(name.with_suffix(".start"))
        if not blow.at_call:
            self._strike(blow, node, pid)
            asking = asyncio.ensure_future(asked())
        else:
            line = Line(name)
            await self.ask(stop_at_call, line.path, blow.at_call)
            asking = asyncio.ensure_future(asked())
            assert await line.hear(asking) == pid
            line.close()
            self._strike(blow, node, pid)
        if blow.successors:
            await self._backend.kill_at_start(self.hosts[0], asking, blow.successors)
        return await asking

    async def ask(self, function: Callable[..., object], *args: object) -> Any:
        """What a function says that is called in the actor."""
        return await self._shard.call("__ray_call__", function, *args)

    def _strike(self, blow: Blow, node: str, pid: int) -> None:
        if blow.loses_node and node in {n.node_id for n in self._backend.cluster.worker_nodes}:
            self._backend.lose_node(node)
        else:
            self._backend.kill_pid(pid, signal.SIGSTOP if blow.hangs else signal.SIGKILL)
