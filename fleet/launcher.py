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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from fleet.plan import RolloutPlan
from fleet.scenario import Scenario
from fleet.shard_actor import Deed, HostUnreachable, RayShard
from node.api import FaultSpec, HostSpec, ShardConfig, VmSpec

if TYPE_CHECKING:
    from node.shard import Shard

__all__ = [
    "Backend",
    "Deed",
    "HostUnreachable",
    "LocalBackend",
    "RayBackend",
    "ShardHandle",
    "partition",
]

#: Up to this many hosts each one gets an actor of its own unless said otherwise.
PER_HOST_MAX = 32


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

    def spawn(self, config: ShardConfig) -> ShardHandle:
        """A shard with this config. It may still be starting up when this returns."""

    async def peak_rss_bytes(self) -> int:
        """The most memory that this process and all shards have had resident, in sum."""

    async def close(self) -> None:
        """End every shard."""


def partition(
    scenario: Scenario,
    plan: RolloutPlan,
    *,
    shards: int | str | None,
    records_events: bool,
    keep_images: frozenset[str] = frozenset(),
    done: Sequence[Deed] = (),
    processors: int = 1,
) -> list[ShardConfig]:
    """Split a fleet into shards.

    `shards` is a number, "per-host", or None: one per host up to `PER_HOST_MAX` hosts, one per
    processor beyond. Hosts are dealt out in plan order, so that each wave keeps every shard busy.
    `done` is what a resumed run has done to hosts already.
    """
    names = [*plan.hosts, *plan.up_to_date]
    if shards == "per-host" or (shards is None and len(names) <= PER_HOST_MAX):
        count = len(names)
    else:
        count = min(len(names), processors if shards is None else int(shards))
    mine = {name: nr % count for nr, name in enumerate(names)}
    hosts: list[list[HostSpec]] = [[] for _ in range(count)]
    vms: list[list[VmSpec]] = [[] for _ in range(count)]
    faults: list[list[FaultSpec]] = [[] for _ in range(count)]
    commands: list[list[Deed]] = [[] for _ in range(count)]
    for host in scenario.hosts:
        hosts[mine[host.name]].append(host)
    for vm in scenario.vms:
        vms[mine[vm.host]].append(vm)
    for fault in scenario.faults:
        faults[mine[fault.host]].append(fault)
    for command in done:
        commands[mine[command.host]].append(command)
    return [
        ShardConfig(
            seed=scenario.seed,
            hosts=tuple(hosts[nr]),
            vms=tuple(vms[nr]),
            faults=tuple(faults[nr]),
            cost_profile=scenario.cost_profile,
            releases=scenario.releases,
            record_events=records_events,
            keep_images=keep_images.intersection(host.name for host in hosts[nr]),
            commands=tuple(commands[nr]),
        )
        for nr in range(count)
    ]


class LocalBackend:
    """Shards in this process, on one thread of their own, so that the event loop stays free.

    One thread for all of them: they compute, so more would only fight over the interpreter.
    """

    name = "local"
    batch = 4

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
    """Each shard in a Ray actor. Starts a small Ray on this machine, or joins one at `address`."""

    name = "ray"
    batch = 64

    def __init__(self, address: str | None = None) -> None:
        # Before Ray is loaded, which reads them once: a Ray that is ours alone needs no token
        # file in the home directory and has nothing to report to its makers.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # An actor per host means many processes: let them start together, and spare people Ray's
        # warning of them, which it would print into our own output.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(PER_HOST_MAX))
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")
        import ray

        self._ray = ray
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            local: dict[str, Any] = {
                "num_cpus": os.cpu_count() or 1,
                "object_store_memory": 80 << 20,
                "include_dashboard": False,
            }
            ray.init(
                # Not None: that joins whatever Ray happens to run on this machine.
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(local if address is None else {}),
            )
        self._shards: list[RayShard] = []

    def spawn(self, config: ShardConfig) -> ShardHandle:
        """A shard with this config, in an actor that starts up while others are spawned."""
        shard = RayShard(config, self._ray, self._start)
        self._shards.append(shard)
        return shard

    def _start(self, config: ShardConfig) -> Any:  # noqa: ANN401 - Ray's handles are not typed
        from node.actor import ShardActor

        # Without a demand for CPUs Ray would put every actor of a cluster on its first node.
        remote = self._ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD")
        return remote(ShardActor).remote(config)

    async def peak_rss_bytes(self) -> int:
        """The most memory that this process and each actor have had resident, in sum."""
        peaks = await asyncio.gather(*(shard.call("peak_rss_bytes") for shard in self._shards))
        return own_peak_rss_bytes() + sum(map(int, peaks))

    async def close(self) -> None:
        """Kill the actors, and Ray with them if we started it."""
        for shard in self._shards:
            shard.kill()
        if self._owns_ray:
            self._ray.shutdown()


def own_peak_rss_bytes() -> int:
    """The most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
