"""A toy shard and a backend for it: results without kernels, deterministic like the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from fleet.launcher import Deed
from fleet.scenario import GateSpec, RolloutSpec, Scenario
from kernelmodel.sim.rng import stream
from kernelmodel.sim.trace import Trace
from node.api import (
    MIN_UPDATE_NS,
    Backing,
    FaultSpec,
    HostGauges,
    HostOutcome,
    ShardConfig,
    UpdateCommand,
    UpdateResult,
    VmOutcome,
    VmResult,
    VmSpec,
)
from tests.fleet.rollouts import SECOND, racks, scenario_of

ROLLOUT = RolloutSpec(
    canary=1,
    wave_size=6,
    max_unavailable={"rack": 2},
    soak_ns=300 * SECOND,
    canary_soak_ns=600 * SECOND,
    gate=GateSpec(max_failed_hosts=2, max_lost_vms=0),
)


def fleet_of(*sizes: int, faults: tuple[FaultSpec, ...] = ()) -> Scenario:
    hosts = racks(*sizes)
    vms = tuple(
        VmSpec(f"{host.name}-vm{nr}", host.name, 1 << 30, Backing.HUGETLB_2M, 2)
        for host in hosts
        for nr in range(2)
    )
    return replace(scenario_of(hosts, ROLLOUT), vms=vms, faults=faults)


SCENARIO = fleet_of(8, 8, 8, faults=(FaultSpec("r2-h05", "next-kernel-panics"),))


class ToyShard:
    """Hosts that take a random time to update; a fault makes a host roll back."""

    def __init__(self, config: ShardConfig) -> None:
        self.config = config
        self.updated: list[str] = []

    def update(self, commands: list[UpdateCommand]) -> list[UpdateResult]:
        return [self._update(command) for command in commands]

    def gauges(self, names: Sequence[str]) -> dict[str, HostGauges]:
        releases = {host.name: host.release for host in self.config.hosts}
        return {name: self._gauges(name, releases[name]) for name in names}

    def _gauges(self, host: str, release: str) -> HostGauges:
        vms = sum(vm.host == host for vm in self.config.vms)
        pools = {"2MiB": {"free": 3, "used": 4 * vms, "reserved": 0, "surplus": 0}}
        return HostGauges(release, {"running": vms}, pools, 1 << 20)

    def _update(self, command: UpdateCommand) -> UpdateResult:
        self.updated.append(command.host)
        rng = stream(self.config.seed, "host", command.host, command.seq)
        preserve_ns, kexec_ns = rng.randrange(5 * SECOND), rng.randrange(SECOND, 20 * SECOND)
        paused_ns = command.start_ns + MIN_UPDATE_NS + preserve_ns
        end_ns = paused_ns + kexec_ns + SECOND
        faults = [fault for fault in self.config.faults if fault.host == command.host]
        trace = Trace(f"host/{command.host}", record=self.config.record_events)
        trace.emit(command.start_ns, "start", release=command.release)
        trace.emit(end_ns, "end", faults=len(faults))
        return UpdateResult(
            host=command.host,
            seq=command.seq,
            outcome=HostOutcome.ROLLED_BACK if faults else HostOutcome.UPDATED,
            reason=faults[0].kind if faults else "",
            detail="",
            release="7.3.2+hugetlb" if faults else command.release,
            start_ns=command.start_ns,
            end_ns=end_ns,
            blackout_start_ns=paused_ns,
            blackout_end_ns=paused_ns + kexec_ns,
            preserved_from_ns=paused_ns - preserve_ns,
            preserved_until_ns=end_ns,
            preserved_pages={"2MiB": 0 if faults else 8},
            phases_ns={"kexec": kexec_ns},
            outside_ns={"preserve": preserve_ns},
            freeze_attempts=1,
            vms=tuple(
                _vm(vm.name, kexec_ns, faults) for vm in self.config.vms if vm.host == command.host
            ),
            gauges=self._gauges(command.host, command.release),
            digest=trace.hexdigest(),
            events=trace.take_events(),
        )


def _vm(name: str, kexec_ns: int, faults: list[FaultSpec]) -> VmResult:
    outcome = VmOutcome.PRESERVED
    phases = {"pause_wait": 0, "kexec": kexec_ns}  # as in every VM that was paused
    if faults:
        outcome = VmOutcome.LOST if faults[0].kind == "drop-preserved-page" else outcome.RESTARTED
        phases["restart"] = 30 * SECOND
    lost = outcome is VmOutcome.LOST
    return VmResult(name, outcome, "", None if lost else sum(phases.values()), phases)


class HandWall:
    """A wall clock that stands still unless waited for."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def now(self) -> float:
        return self.seconds

    async def wait(self, wakeup: asyncio.Event, seconds: float) -> None:
        await asyncio.sleep(0)
        if not wakeup.is_set():
            self.seconds += seconds


class ToyHandle:
    """A toy shard as a backend hands it out."""

    def __init__(self, backend: ToyBackend, config: ShardConfig) -> None:
        self.backend = backend
        self.shard = ToyShard(config)

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(host.name for host in self.shard.config.hosts)

    async def call(self, method: str, *args: object, history: Sequence[Deed] = ()) -> Any:
        self.backend.messages.append((method, self.hosts, len(history)))
        if self.backend.calls_left == 0:
            raise self.backend.failure
        self.backend.calls_left -= 1
        return getattr(self.shard, method)(*args)


class ToyBackend:
    """Toy shards in this process. After `calls_left` calls it answers with `failure`."""

    name = "toy"
    batch = 4
    processors = 1

    def __init__(self, calls_left: int = -1, failure: BaseException | None = None) -> None:
        self.calls_left = calls_left
        self.failure = failure or RuntimeError("the driver dies here")
        self.handles: list[ToyHandle] = []
        self.messages: list[tuple[str, tuple[str, ...], int]] = []

    @property
    def updated(self) -> list[str]:
        """Every host that was really updated, by shard."""
        return [host for handle in self.handles for host in handle.shard.updated]

    def spawn(self, config: ShardConfig) -> ToyHandle:
        self.handles.append(ToyHandle(self, config))
        return self.handles[-1]

    async def peak_rss_bytes(self) -> int:
        return 1 << 20

    async def close(self) -> None:
        pass
