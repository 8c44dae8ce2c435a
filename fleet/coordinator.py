"""The coordinator: a pure step function from observations to actions.

It owns a rollout's state and nothing else: no clock, no actors, no files. The driver tells it
what happened (`Tick`, `HostDone`, `Request`) in the order of virtual time, it answers with what is
to be done (`StartHosts`, `WakeAt`, `Refused`, `Finished`).

Happy path: the first tick starts the canary; when its last host is done the canary soaks; when
the soak is over the next wave starts, and so on until `Finished(COMPLETED)`.

Unhappy paths: a gate that closes (`fleet.policy`) halts the rollout at once; so does a wave whose
remaining hosts cannot start because hosts that are down fill their domains. A request aborts or
pauses it. In all of these nothing new starts and hosts in flight finish; `Finished` comes when
the last of them is done. A pause stops starts, not time: a soak goes on during it.

Invariant, at every instant: of each value of each domain key no more than `max_unavailable` hosts
are in flight or down. A host is unavailable from the start of its update to the end, and beyond
it if the update left it down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from fleet.api import RolloutState, WaveRecord
from fleet.domains import Domains
from fleet.plan import PlannedWave, RolloutPlan
from fleet.policy import Tally, host_is_up, judge, judge_canary
from fleet.steps import (
    Action,
    Finished,
    HostDone,
    Observation,
    Refused,
    Request,
    RequestKind,
    StartHosts,
    WakeAt,
)
from kernelmodel.errors import ModelBug
from node.api import HostOutcome, UpdateCommand, UpdateResult

if TYPE_CHECKING:
    from fleet.scenario import GateSpec

__all__ = ["NEXT", "Coordinator", "EventSink"]

_S = RolloutState

#: Every move that a rollout can make; `Coordinator._enter` is the only door.
NEXT: Final[dict[RolloutState, frozenset[RolloutState]]] = {
    _S.PENDING: frozenset({_S.CANARY, _S.WAVE, _S.ABORTED, _S.COMPLETED}),
    _S.CANARY: frozenset({_S.SOAKING, _S.PAUSED, _S.HALTED, _S.ABORTED}),
    _S.WAVE: frozenset({_S.SOAKING, _S.PAUSED, _S.HALTED, _S.ABORTED}),
    _S.SOAKING: frozenset({_S.WAVE, _S.PAUSED, _S.ABORTED, _S.COMPLETED}),
    _S.PAUSED: frozenset({_S.CANARY, _S.WAVE, _S.SOAKING, _S.HALTED, _S.ABORTED}),
    _S.HALTED: frozenset(),
    _S.ABORTED: frozenset(),
    _S.COMPLETED: frozenset(),
}


class EventSink(Protocol):
    """Where the coordinator's log goes; `kernelmodel.sim.trace.Trace` is one."""

    def emit(self, now_ns: int, event: str, /, **fields: int | str | bytes | bool) -> None:
        """Append one event."""


@dataclass(slots=True)
class _WaveLog:
    """What became of one wave, so far."""

    wave: PlannedWave
    updated: int = 0
    start_ns: int | None = None
    end_ns: int | None = None
    soak_end_ns: int | None = None
    verdict: str = "not started"

    def record(self) -> WaveRecord:
        return WaveRecord(
            index=self.wave.index,
            name=self.wave.name,
            hosts=self.wave.hosts,
            start_ns=self.start_ns,
            end_ns=self.end_ns,
            soak_end_ns=self.soak_end_ns,
            verdict=self.verdict,
        )


class Coordinator:
    """One rollout of one plan.

    `state`, `why`, `wave` and `tally` may be read at any time; only `step` changes them.
    """

    def __init__(self, plan: RolloutPlan, gate: GateSpec, trace: EventSink) -> None:
        self.plan = plan
        self.gate = gate
        self.state = RolloutState.PENDING
        self.why = "not started"
        self.wave = -1  # index into the plan, -1 before the first
        self.tally = Tally()
        self.now_ns = 0
        self.is_finished = False
        self._trace = trace
        self._waves = [_WaveLog(wave) for wave in plan.waves]
        self._domains = Domains(plan.max_unavailable)
        self._offers: tuple[str, ...] = ()  # hosts of the wave that were not looked at yet
        self._not_started: dict[str, None] = {}  # hosts of the wave, parked ones included
        self._in_flight: dict[str, UpdateCommand] = {}
        self._paused_in = RolloutState.PENDING
        self._soak_until_ns = 0

    @property
    def in_flight(self) -> tuple[str, ...]:
        """Hosts that were started and are not done."""
        return tuple(self._in_flight)

    @property
    def wave_records(self) -> tuple[WaveRecord, ...]:
        """Every wave of the plan as it stands."""
        return tuple(log.record() for log in self._waves)

    def wave_record(self, index: int) -> WaveRecord:
        """One wave of the plan as it stands."""
        return self._waves[index].record()

    @property
    def wave_name(self) -> str:
        """The current wave's name, "" before the first."""
        return self.plan.waves[self.wave].name if self.wave >= 0 else ""

    @property
    def soak_until_ns(self) -> int | None:
        """When the running soak ends, None outside of one."""
        soaking = RolloutState.SOAKING
        if self.state is soaking or (
            self.state is RolloutState.PAUSED and self._paused_in is soaking
        ):
            return self._soak_until_ns
        return None

    def step(self, observation: Observation) -> list[Action]:
        """Take in one observation and say what is to be done about it.

        Observations come in the order of their `now_ns`.

        Raises:
            ModelBug: the driver broke that order, reported a host that was not in flight, or
                went on after `Finished`.
        """
        now_ns = observation.now_ns
        if now_ns < self.now_ns:
            raise ModelBug(f"observation of {now_ns} ns after one of {self.now_ns} ns")
        self.now_ns = now_ns
        if isinstance(observation, Request):
            refusal = self._refusal(observation.kind)
            if refusal:  # nothing has happened: no trace of it either
                return [Refused(observation, refusal)]
            self._emit("request", kind=observation.kind, why=observation.why)
            self._obey(observation)
        elif self.is_finished:
            raise ModelBug(f"{type(observation).__name__} after the rollout has finished")
        elif isinstance(observation, HostDone):
            self._host_done(observation.result)
        elif self.state is RolloutState.PENDING:
            self._start_wave(0)
        return self._proceed()

    def _refusal(self, kind: RequestKind) -> str:
        """Why this cannot be asked now, "" if it can."""
        if self.state.is_final:
            return f"the rollout is {self.state} already"
        if kind is RequestKind.ABORT:
            return ""
        if self.state is RolloutState.PENDING:
            return "the rollout has not started"
        if (self.state is RolloutState.PAUSED) == (kind is RequestKind.PAUSE):
            paused = self.state is RolloutState.PAUSED
            return "the rollout is paused already" if paused else "the rollout is not paused"
        return ""

    def _obey(self, request: Request) -> None:
        why = request.why or "on request"
        if request.kind is RequestKind.ABORT:
            self._end(RolloutState.ABORTED, why)
        elif request.kind is RequestKind.PAUSE:
            self._paused_in = self.state
            self._enter(RolloutState.PAUSED, why)
        else:
            self._enter(self._paused_in, why)

    def _host_done(self, result: UpdateResult) -> None:
        if self._in_flight.pop(result.host, None) is None:
            raise ModelBug(f"{result.host} is done but was not in flight")
        self._emit(
            "done",
            host=result.host,
            seq=result.seq,
            outcome=result.outcome,
            reason=result.reason,
        )
        if host_is_up(result):
            self._domains.give_back(self.plan.domains[result.host])
        self.tally.add(result)
        log = self._waves[self.wave]
        log.end_ns = result.end_ns
        log.updated += result.outcome is HostOutcome.UPDATED
        if not self.state.is_final and (why := judge(self.tally, self.gate)):
            self._end(RolloutState.HALTED, why)

    def _proceed(self) -> list[Action]:
        """Go as far as the present instant allows."""
        actions: list[Action] = []
        while True:
            if self.state in (RolloutState.CANARY, RolloutState.WAVE):
                if commands := self._start_hosts():
                    actions.append(StartHosts(commands))
                if self._in_flight:
                    break
                self._wave_done()
            elif self.state is RolloutState.SOAKING:
                if self.now_ns < self._soak_until_ns:
                    actions.append(WakeAt(self._soak_until_ns))
                    break
                log = self._waves[self.wave]
                log.soak_end_ns, log.verdict = self._soak_until_ns, "passed"
                self._start_wave(self.wave + 1)
            else:
                break
        if self.state.is_final and not self._in_flight:
            self.is_finished = True
            actions.append(Finished(self.state, self.why))
        return actions

    def _start_wave(self, index: int) -> None:
        if index == len(self._waves):
            tried, updated = len(self.plan.hosts), self.tally.updated_hosts
            target = self.plan.target_release
            why = f"{updated} of {tried} hosts updated" if tried else f"all run {target} already"
            self._enter(RolloutState.COMPLETED, why)
            return
        log = self._waves[index]
        log.start_ns, log.verdict = self.now_ns, "running"
        self.wave = index
        self._offers = log.wave.hosts
        self._not_started = dict.fromkeys(log.wave.hosts)
        state = RolloutState.CANARY if log.wave.is_canary else RolloutState.WAVE
        self._enter(state, f"{log.wave.name} of {len(log.wave.hosts)} hosts starts")

    def _start_hosts(self) -> tuple[UpdateCommand, ...]:
        """Start whatever the limits allow, in plan order."""
        picked = [h for h in self._offers if self._domains.take(h, self.plan.domains[h])]
        picked += self._domains.take_parked(self.plan.domains)
        self._offers = ()
        for host in picked:
            del self._not_started[host]
            self._in_flight[host] = UpdateCommand(
                host=host,
                seq=1,
                start_ns=self.now_ns,
                release=self.plan.target_release,
                policy=self.plan.update,
            )
            self._emit("start", host=host, seq=1, wave=self.wave)
        return tuple(self._in_flight[host] for host in picked)

    def _wave_done(self) -> None:
        """No host of the wave is in flight: soak, unless it has to end here."""
        log = self._waves[self.wave]
        if self._not_started:
            key, value, down = self._domains.first_full_with_waiters()
            left = len(self._not_started)
            why = f"{left} hosts of {log.wave.name} cannot start: {key} {value} has {down} down"
            self._end(RolloutState.HALTED, why)
        elif log.wave.is_canary and (why := judge_canary(log.updated, len(log.wave.hosts))):
            self._end(RolloutState.HALTED, why)
        else:
            end_ns = self.now_ns if log.end_ns is None else log.end_ns
            self._soak_until_ns = end_ns + log.wave.soak_ns
            self._enter(RolloutState.SOAKING, f"{log.wave.name} is done")

    def _end(self, state: RolloutState, why: str) -> None:
        """No host starts any more; the rollout is over when the last in flight is done."""
        if self.wave >= 0:
            self._waves[self.wave].verdict = f"{state}: {why}"
        self._enter(state, why)

    def _enter(self, state: RolloutState, why: str) -> None:
        if state not in NEXT[self.state]:
            raise ModelBug(f"{self.state} -> {state}: {why}")
        self._emit("state", old=self.state, new=state, why=why)
        self.state = state
        self.why = why

    def _emit(self, event: str, **fields: int | str | bytes | bool) -> None:
        self._trace.emit(self.now_ns, event, **fields)
