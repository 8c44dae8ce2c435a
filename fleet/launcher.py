"""Where shards run: in this process, or each in a Ray actor. The only file of `fleet` that knows.

A backend spawns shards from their configs and hands out handles; `await handle.call("update",
commands)` is the same on both, and so are the answers, for a shard is a function of its config and
the commands that it was given.

An actor that dies is replaced: see `fleet.shard_actor`.

Ray is loaded when a `RayBackend` is made and never before: it costs half a second to import and
three to start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

from fleet.placement import (
    NOTHING,
    PER_HOST_MAX,
    Demand,
    Node,
    cpu_share,
    demand_of,
    is_room_for,
)
from fleet.shard_actor import Deed, HostUnreachable, RayShard
from fleet.units import show_size
from node.api import ShardConfig
from node.code import code_digest

if TYPE_CHECKING:
    from node.shard import Shard

__all__ = [
    "Backend",
    "Deed",
    "HostUnreachable",
    "LocalBackend",
    "RayBackend",
    "ShardHandle",
    "fault_of_address",
]

#: How HTTP/2 begins: a client's preface and its settings, none of them; a server's settings.
_HTTP2_SETTINGS: Final = b"\x04"
_HTTP2_HELLO: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)


class ShardHandle(Protocol):
    """One shard, wherever it runs."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of its hosts."""

    async def call(self, method: str, *args: object, history: Sequence[Deed] = ()) -> Any:  # noqa: ANN401 - the shard's answer
        """Call a method of the shard, in the order of the calls.

        `history` is what the call does to hosts: a shard that is rebuilt later replays it.
        """


class Backend(Protocol):
    """Something that runs shards."""

    name: str
    #: Commands that go into one message at most: a message is answered as a whole.
    batch: int

    @property
    def processors(self) -> int:
        """How many shards can compute at once."""

    def spawn(self, config: ShardConfig) -> ShardHandle:
        """A shard with this config. It may still be starting up when this returns."""

    async def peak_rss_bytes(self) -> int:
        """The most memory that this process and all shards have had resident, in sum."""

    async def close(self) -> None:
        """End every shard."""


class LocalBackend:
    """Shards in this process, on one thread of their own, so that the event loop stays free.

    One thread for all of them: they compute, so more would only fight over the interpreter.
    """

    name = "local"
    batch = 4
    processors = 1

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards")

    def spawn(self, config: ShardConfig) -> ShardHandle:
        """A shard with this config."""
        return _LocalShard(config, self._thread)

    async def peak_rss_bytes(self) -> int:
        """The most memory that this process has had resident."""
        return own_peak_rss_bytes()

    async def close(self) -> None:
        """Wait for what is being computed and drop the rest."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class _LocalShard:
    def __init__(self, config: ShardConfig, thread: ThreadPoolExecutor) -> None:
        self._config = config
        self._thread = thread
        self._shard: Shard | None = None

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(host.name for host in self._config.hosts)

    async def call(self, method: str, *args: object, history: Sequence[Deed] = ()) -> Any:  # noqa: ANN401 - ShardHandle
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._invoke, method, args)

    def _invoke(self, method: str, args: tuple[object, ...]) -> object:
        if self._shard is None:
            from node.shard import Shard

            self._shard = Shard(self._config)
        return getattr(self._shard, method)(*args)


class RayBackend:
    """Each shard in a Ray actor. Starts a small Ray on this machine, or joins one at `address`.

    Without an address the one in `RAY_ADDRESS` is meant, if that is set; "auto" is the cluster on
    one of whose nodes this runs. `actor_cpus` is what an actor asks for on a cluster that was
    joined, and `patience_seconds` how long it may wait for that; see `fleet.placement`.
    """

    name = "ray"
    batch = 64

    def __init__(
        self,
        address: str | None = None,
        *,
        actor_cpus: float | None = None,
        patience_seconds: float = 300,
    ) -> None:
        wrong, address = fault_of_address(address), _meant(address)
        if wrong:
            raise HostUnreachable(wrong)
        if address is None:
            _quiet()
        import ray

        self._ray = ray
        self._owns_ray = not ray.is_initialized()
        self._is_alone = self._owns_ray and address is None
        if self._owns_ray:
            _init(ray, address)
        # Called where an actor runs: on a cluster, other nodes are to find its gRPC server.
        self._own_address: Callable[[], str] | None = (
            None if self._is_alone else ray.util.get_node_ip_address
        )
        self.code = "" if self._is_alone else code_digest()
        self._actor_cpus = actor_cpus
        self.patience_seconds = patience_seconds
        # An answer too big for a message lies on the actor's node until it is fetched, and is lost
        # with it. The actor has acted by then: it takes a new one to ask again.
        self.losses: tuple[type[Exception], ...] = (
            ray.exceptions.RayActorError,
            ray.exceptions.ObjectLostError,
            ray.exceptions.OutOfMemoryError,
        )
        self._shards: list[RayShard] = []

    @property
    def processors(self) -> int:
        """CPUs of the cluster that are there for us now."""
        return max(1, int(_cpus(self._offered())))

    def spawn(self, config: ShardConfig) -> ShardHandle:
        """A shard with this config, in an actor that starts up while others are spawned."""
        if self._actor_cpus is None:
            self._actor_cpus = cpu_share(config.of_shards, self._offered())
        shard = RayShard(config, self)
        self._shards.append(shard)
        return shard

    async def peak_rss_bytes(self) -> int:
        """The most memory that this process and each actor have had resident, in sum."""
        peaks = await asyncio.gather(*(shard.call("peak_rss_bytes") for shard in self._shards))
        return own_peak_rss_bytes() + sum(map(int, peaks))

    async def close(self) -> None:
        """Kill the actors, and Ray with them if we started it."""
        for shard in self._shards:
            shard.kill()
        if self._owns_ray:  # it takes more than a second, in which the caller may do other things
            await asyncio.to_thread(self._ray.shutdown)

    def start(self, config: ShardConfig, *, squeezed: bool) -> Any:  # noqa: ANN401 - Ray's handles are not typed
        """An actor; see `fleet.shard_actor.Place`, as for what follows."""
        from node.actor import ShardActor

        demand = self._demand(config, squeezed=squeezed)
        # By itself Ray would fill one node before it takes the next.
        remote = self._ray.remote(
            num_cpus=demand.cpus,
            memory=demand.memory_bytes,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        return remote(ShardActor).remote(config, self._own_address)

    def kill(self, actor: Any) -> None:  # noqa: ANN401 - as above
        """End an actor, if it can be reached."""
        self._ray.kill(actor)

    def is_short(self, config: ShardConfig) -> bool:
        """Whether the nodes that there are could not hold every shard, were they empty."""
        demand = self._demand(config, squeezed=False)
        return not is_room_for(config.of_shards, demand, self._nodes())

    def missing(self, config: ShardConfig, *, squeezed: bool) -> str:
        """What keeps an actor from being placed now, "" if nothing does."""
        demand, free = self._demand(config, squeezed=squeezed), self._nodes(free=True)
        if is_room_for(1, demand, free):
            return ""
        has = "; ".join(f"{node.cpus:g} CPU and {show_size(node.memory_bytes)}" for node in free)
        return f"wants {demand}; the nodes have left: {has or 'there are none'}"

    def _demand(self, config: ShardConfig, *, squeezed: bool) -> Demand:
        if self._is_alone:
            return NOTHING
        return demand_of(config, 0 if squeezed else self._actor_cpus or 0)

    def _offered(self) -> list[Node]:
        """What other programs leave of each node; all of it, while they leave less than a CPU."""
        free = self._nodes(free=True)
        return free if _cpus(free) >= 1 else self._nodes()

    def _nodes(self, *, free: bool = False) -> list[Node]:
        """What each node has, or has left."""
        from ray._private.state import available_resources_per_node

        nodes = [node for node in self._ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        left = available_resources_per_node() if free else {}  # type: ignore[no-untyped-call]
        found = []
        for node in nodes:
            has = left.get(node["NodeID"], {}) if free else node["Resources"]
            found.append(Node(has.get("CPU", 0), int(has.get("memory", 0))))
        return found


def _cpus(nodes: Sequence[Node]) -> float:
    return sum(node.cpus for node in nodes)


def _quiet() -> None:
    """Settings for a Ray that is ours alone; to be made before Ray is loaded, which reads them."""
    # It needs no token file in the home directory and has nothing to report to its makers.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # An actor per host means many processes: let them start together, and spare people Ray's
    # warning of them, which it would print into our own output.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(PER_HOST_MAX))
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")


def _init(ray: ModuleType, address: str | None) -> None:
    """Start a Ray on this machine, or join one.

    Raises:
        HostUnreachable: there is none at that address, or none can be started.
    """
    size: dict[str, Any] = {}
    if address is None:
        size = {
            "num_cpus": os.cpu_count() or 1,
            "object_store_memory": 80 << 20,
            "include_dashboard": False,
        }
    else:
        _check_speaks(address)
    try:
        # "local" and not None: that would join whatever Ray happens to run on this machine.
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **size
        )
    except Exception as error:  # Ray raises what it meets, and a bare one where it waits in vain
        if address is None:
            ray.shutdown()
            without = "--backend local does without"
            raise HostUnreachable(f"Ray does not start here: {error}; {without}") from error
        raise HostUnreachable(f"cannot join a Ray cluster at {address}: {error}") from error


def fault_of_address(address: str | None) -> str:
    """What is wrong with the form of a cluster's address, or of `RAY_ADDRESS` instead; else ""."""
    meant = _meant(address)
    host, _, port = (meant or "").rpartition(":")
    if meant in (None, "auto", "local") or (host and port.isdecimal() and "/" not in host):
        return ""
    right = "HOST:PORT of its head is, whose port is 6379 unless chosen otherwise, or auto"
    return f"{meant!r} is not the address of a Ray cluster: {right}"


def _meant(address: str | None) -> str | None:
    return address or os.environ.get("RAY_ADDRESS") or None


def _check_speaks(address: str) -> None:
    """Ray would wait for a minute, or for ever, for one that does not, deaf to SIGINT.

    Raises:
        HostUnreachable: at this HOST:PORT is nobody, or somebody who does not speak gRPC.
    """
    host, _, port = address.rpartition(":")
    if not host:
        return  # "auto" is for Ray to resolve
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as peer:
            if os.environ.get("RAY_USE_TLS", "").lower() not in ("1", "true"):
                peer.sendall(_HTTP2_HELLO)
                if peer.recv(9)[3:4] != _HTTP2_SETTINGS:
                    raise HostUnreachable(f"no Ray cluster at {address}, but something else")
    except (OSError, OverflowError) as error:
        raise HostUnreachable(f"no Ray cluster listens at {address}: {error}") from error


def own_peak_rss_bytes() -> int:
    """The most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
