"""Rollouts without kernels: invented results for coordinator tests, and an independent referee."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fleet.api import RolloutState
from fleet.coordinator import Coordinator
from fleet.plan import make_plan
from fleet.scenario import GateSpec, RolloutSpec, Scenario
from fleet.steps import (
    Action,
    Finished,
    HostDone,
    Observation,
    Refused,
    Request,
    RequestKind,
    StartHosts,
    Tick,
    WakeAt,
)
from node.api import (
    MIN_UPDATE_NS,
    HostGauges,
    HostOutcome,
    HostSpec,
    UpdateCommand,
    UpdatePolicy,
    UpdateResult,
    VmOutcome,
    VmResult,
)

OLD, NEW = "7.3.2+hugetlb", "7.3.4+hugetlb"
SECOND = 1_000_000_000
ONE_BY_ONE = RolloutSpec()


def host_spec(name: str, release: str = OLD, **domains: str) -> HostSpec:
    return HostSpec(name, domains or {"rack": "r1"}, (8 << 30,), 4, release)


def racks(*sizes: int, release: str = OLD) -> tuple[HostSpec, ...]:
    """Hosts r1-h01 … of racks with these sizes."""
    return tuple(
        host_spec(f"r{rack}-h{nr:02}", release, rack=f"r{rack}")
        for rack, size in enumerate(sizes, start=1)
        for nr in range(1, size + 1)
    )


def scenario_of(
    hosts: tuple[HostSpec, ...], rollout: RolloutSpec = ONE_BY_ONE, target: str = NEW
) -> Scenario:
    return Scenario(
        name="invented",
        source=Path("invented.toml"),
        seed=7,
        hosts=hosts,
        vms=(),
        target_release=target,
        rollout=rollout,
        update=UpdatePolicy(),
        faults=(),
        cost_profile="",
        downtime_budget_ns=30 * SECOND,
        digest="00",
    )


def result_of(
    command: UpdateCommand,
    *,
    outcome: HostOutcome = HostOutcome.UPDATED,
    took_ns: int = 20 * SECOND,
    reason: str = "",
    release: str | None = None,
    vms: tuple[VmResult, ...] = (),
) -> UpdateResult:
    """What a host without a kernel would say."""
    runs = command.release if outcome is HostOutcome.UPDATED else OLD
    return UpdateResult(
        host=command.host,
        seq=command.seq,
        outcome=outcome,
        reason=reason,
        detail=reason,
        release=runs if release is None else release,
        start_ns=command.start_ns,
        end_ns=command.start_ns + took_ns,
        blackout_start_ns=None,
        blackout_end_ns=None,
        preserved_from_ns=None,
        preserved_until_ns=None,
        preserved_pages={},
        phases_ns={},
        outside_ns={},
        freeze_attempts=1,
        vms=vms,
        gauges=HostGauges(runs, {}, {}, 0),
        digest="00",
    )


def lost_vm(name: str) -> VmResult:
    return VmResult(name, VmOutcome.LOST, "fingerprint", None, {})


class Log:
    """An `EventSink` that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str, dict[str, int | str | bytes | bool]]] = []

    def emit(self, now_ns: int, event: str, /, **fields: int | str | bytes | bool) -> None:
        self.events.append((now_ns, event, fields))

    def moves(self) -> list[tuple[str, str]]:
        """The state changes, in order."""
        return [(str(f["old"]), str(f["new"])) for _, e, f in self.events if e == "state"]


@dataclass
class Referee:
    """Recounts, from the messages alone, what no coordinator may do."""

    scenario: Scenario
    waves: list[tuple[str, ...]]
    running: dict[str, UpdateCommand] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    ended_ns: dict[str, int] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    stopped: bool = False  # paused or over: nothing may start
    over: bool = False  # halted, aborted or completed

    def saw(self, observation: Observation) -> None:
        if isinstance(observation, HostDone):
            del self.running[observation.result.host]
            self.ended_ns[observation.result.host] = observation.now_ns
            if not observation.result.release:
                self.down.add(observation.result.host)
        elif isinstance(observation, Request) and observation.kind is RequestKind.RESUME:
            self.stopped = self.over

    def saw_actions(self, now_ns: int, actions: list[Action], state: RolloutState) -> None:
        for action in actions:
            if isinstance(action, StartHosts):
                assert not self.stopped, "a host starts although the rollout stands still"
                for command in action.commands:
                    assert command.start_ns == now_ns
                    assert command.host not in self.started, "started twice"
                    self.started.append(command.host)
                    self.running[command.host] = command
            if isinstance(action, Finished):
                assert not self.running, "finished with hosts in flight"
        self.over = self.over or state.is_final
        self.stopped = self.over or state is RolloutState.PAUSED
        self._check_limits()
        self._check_waves(now_ns)

    def _check_limits(self) -> None:
        unavailable = self.down | set(self.running)
        for key, limit in self.scenario.rollout.max_unavailable.items():
            per_value = Counter(
                host.domains.get(key, "")
                for host in self.scenario.hosts
                if host.name in unavailable
            )
            assert max(per_value.values(), default=0) <= limit, f"{key}: {per_value}"

    def _check_waves(self, now_ns: int) -> None:
        """A wave starts only when the one before is done and soaked."""
        spec = self.scenario.rollout
        for nr, (before, after) in enumerate(zip(self.waves, self.waves[1:], strict=False)):
            if any(host in self.running for host in after):
                assert all(host in self.ended_ns for host in before)
                soak_ns = spec.canary_soak_ns if nr == 0 and spec.canary else spec.soak_ns
                first_ns = min(self.running[h].start_ns for h in after if h in self.running)
                assert first_ns >= max(self.ended_ns[h] for h in before) + soak_ns
        assert now_ns >= max(self.ended_ns.values(), default=0)


@dataclass
class World:
    """A seeded world around a coordinator: durations, outcomes and requests are invented."""

    rng: random.Random
    scenario: Scenario
    trouble_permille: int = 0
    down_permille: int = 0
    request_permille: int = 0
    log: Log = field(default_factory=Log)
    refused: list[Refused] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = make_plan(self.scenario)
        self.coordinator = Coordinator(plan, self.scenario.rollout.gate, self.log)
        self.referee = Referee(self.scenario, [wave.hosts for wave in plan.waves])
        self._heap: list[tuple[int, int, Observation]] = []
        self._count = 0

    def run(self, steps: int = 100_000) -> Finished:
        """Play to the end."""
        self._push(Tick(0))
        for _ in range(steps):
            observation = self._next()
            for action in self.step(observation):
                if isinstance(action, Finished):
                    return action
        raise AssertionError(f"no end after {steps} steps")

    def step(self, observation: Observation) -> list[Action]:
        self.referee.saw(observation)
        actions = self.coordinator.step(observation)
        self.referee.saw_actions(observation.now_ns, actions, self.coordinator.state)
        for action in actions:
            if isinstance(action, StartHosts):
                for command in action.commands:
                    self._push(HostDone(self._invent(command)))
            elif isinstance(action, WakeAt):
                self._push(Tick(action.at_ns))
            elif isinstance(action, Refused):
                self.refused.append(action)
        return actions

    def _push(self, observation: Observation) -> None:
        self._count += 1
        heapq.heappush(self._heap, (observation.now_ns, self._count, observation))

    def _next(self) -> Observation:
        now_ns = self.coordinator.now_ns
        if not self._heap:
            return Request(now_ns, RequestKind.RESUME, "nothing else can happen")
        if self.rng.randrange(1000) < self.request_permille:
            at_ns = self.rng.randint(now_ns, self._heap[0][0])
            return Request(at_ns, self.rng.choice(list(RequestKind)), "the dice")
        return heapq.heappop(self._heap)[2]

    def _invent(self, command: UpdateCommand) -> UpdateResult:
        took_ns = MIN_UPDATE_NS + self.rng.randrange(60 * SECOND)
        if self.rng.randrange(1000) >= self.trouble_permille:
            return result_of(command, took_ns=took_ns)
        return result_of(
            command,
            outcome=self.rng.choice([HostOutcome.FAILED, HostOutcome.ROLLED_BACK]),
            took_ns=took_ns,
            reason="panic",
            release="" if self.rng.randrange(1000) < self.down_permille else OLD,
            vms=(lost_vm(f"{command.host}-vm"),) if self.rng.randrange(4) == 0 else (),
        )


def random_scenario(rng: random.Random) -> Scenario:
    """Any scenario that `fleet.check` would let through, troubled or not."""
    hosts = tuple(
        host_spec(
            f"h{nr:03}",
            NEW if rng.randrange(20) == 0 else OLD,
            rack=f"r{rng.randrange(5)}",
            power=f"p{rng.randrange(3)}",
        )
        for nr in range(rng.randrange(0, 40))
    )
    keys = rng.choice([(), ("rack",), ("power",), ("rack", "power")])
    rollout = RolloutSpec(
        canary=rng.randrange(3),
        wave_size=rng.randrange(1, 12),
        max_unavailable={key: rng.randrange(1, 4) for key in keys},
        soak_ns=rng.choice([0, 300 * SECOND]),
        canary_soak_ns=rng.choice([0, 600 * SECOND]),
        spread=rng.choice(["", "rack", "power"]),
        gate=GateSpec(
            max_failed_hosts=rng.choice([0, 2, 1000]), max_lost_vms=rng.choice([0, 1000])
        ),
    )
    return scenario_of(hosts, rollout)


def seeds(count: int) -> Iterator[random.Random]:
    """Named seeds, so that a failing one can be run alone."""
    return (random.Random(f"rollout {nr}") for nr in range(count))
