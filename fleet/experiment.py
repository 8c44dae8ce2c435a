"""The driver: one seeded run of one scenario, from the first tick to the `RunRecord`.

It stands between the pure coordinator and the shards. Virtual time advances from event to event
(a host's update that ends, a soak that ends, a request), always in the same order: by time, then
kind, then host. How many shards there are and where they run cannot change that order, so neither
can it change the digest.

Batching: no update ends sooner than `MIN_UPDATE_NS` after its start, so every event that lies
before (earliest start not sent yet + `MIN_UPDATE_NS`) can be handled before anything is sent.
What piles up meanwhile goes out together, and all shards compute at once.

Unhappy paths: a driver that is cancelled or killed leaves a journal from which a later one goes
on. A shard that breaks its promises is `ModelBug`. A request that makes no sense in the current
state is `RolloutRefused` for whoever asked, and nothing happens.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from fleet.api import FleetSnapshot, RolloutState, RunRecord
from fleet.asking import ask_in_parts, boot_in_parts
from fleet.coordinator import Coordinator
from fleet.inbox import Inbox, RolloutRefused
from fleet.journal import Journal, journal_header
from fleet.launcher import Backend, ShardHandle
from fleet.pace import FreeRunning, Pace
from fleet.placement import partition
from fleet.plan import make_plan
from fleet.promises import check_answer
from fleet.record import RunCosts, make_record
from fleet.run_log import RunLog
from fleet.scenario import Scenario
from fleet.snapshot import Books
from fleet.steps import (
    HostDone,
    Observation,
    Refused,
    Request,
    RequestKind,
    StartHosts,
    Tick,
    WakeAt,
)
from kernelmodel.errors import ModelBug
from kernelmodel.sim.cost import CostModel
from node.api import MIN_UPDATE_NS, UpdateCommand, UpdateResult

__all__ = ["Experiment", "RolloutRefused", "run_rollout"]

#: Wall seconds between two snapshots while nothing but single hosts changes, and how many times
#: the time that a snapshot takes: that of a big fleet must not become what the driver does.
_SNAPSHOT_SECONDS = 0.1
_SNAPSHOT_RATIO = 100

_Event = tuple[int, int, str, Observation]  # time, kind (a host's end before a tick), host, itself


class Experiment:
    """One run. Call `open`, then `run` once; backend and journal belong to the caller.

    `snapshot` is replaced, never changed, whenever something has happened; `results` grows in the
    order in which updates end. Both may be read at any time. `began` is when, on the monotonic
    clock, whoever runs this began; now, if nobody says.
    """

    def __init__(
        self,
        scenario: Scenario,
        backend: Backend,
        journal: Journal,
        *,
        actors: int | str | None = None,
        pace: Pace | None = None,
        trace_path: Path | None = None,
        on_change: Callable[[Experiment], None] | None = None,
        on_result: Callable[[UpdateResult], None] | None = None,
        began: float | None = None,
        keep_images: frozenset[str] = frozenset(),
    ) -> None:
        self.scenario = scenario
        self.plan = make_plan(scenario)
        self.results: list[UpdateResult] = []
        self.record: RunRecord | None = None
        self.shards: list[ShardHandle] = []
        self._began = time.monotonic() if began is None else began
        self._cost_digest = CostModel.load(scenario.cost_profile).digest()
        self._backend = backend
        self._journal = journal
        self._actors = actors
        self._keep_images = keep_images
        self._pace = pace or FreeRunning()
        self._log = RunLog(trace_path)
        self._on_change = on_change
        self._on_result = on_result  # is told of each update that ends, its events included
        self.coordinator = Coordinator(self.plan, scenario.rollout.gate, self._log.stream)
        self._books = Books(scenario)
        self._shard_of: dict[str, ShardHandle] = {}
        self._unsent: list[UpdateCommand] = []
        self._computing: list[UpdateCommand] = []  # sent, and not all of them answered
        self._events: list[_Event] = []
        self._steps = 0
        self._from_journal = 0
        self._inbox = Inbox()
        self._changed = asyncio.Event()
        self._is_running = False
        self._next_snapshot = 0.0  # on the wall
        self._old_results = journal.results()
        self._old_requests = journal.requests()
        self.snapshot: FleetSnapshot = self._books.snapshot(0, self.coordinator)

    async def open(self, *, gauges: bool = False) -> None:
        """Spawn the shards; with `gauges`, boot every host and read its counters."""
        configs = partition(
            self.scenario,
            self.plan,
            shards=self._actors,
            records_events=self._log.wants_events or self._on_result is not None,
            keep_images=self._keep_images,
            done=self._journal.history(),
            processors=self._backend.processors,
        )
        self.shards = [self._backend.spawn(config) for config in configs]
        self._shard_of = {host: shard for shard in self.shards for host in shard.hosts}
        if gauges:
            for counters in await asyncio.gather(*map(boot_in_parts, self.shards)):
                self._books.gauged(counters)
            self._refresh()

    def shard_of(self, host: str) -> ShardHandle:
        """The shard that a host lives in; KeyError if there is no such host."""
        return self._shard_of[host]

    @property
    def answered(self) -> int:
        """How many updates have been computed; those that end later in virtual time are in it."""
        return len(self.results) + self._books.to_come

    @property
    def is_replaying(self) -> bool:
        """Whether it has yet to come to where the run that it resumes broke off."""
        return bool(self._old_results or self._old_requests)

    async def request(self, kind: RequestKind, why: str = "") -> None:
        """Pause, resume or abort the rollout; returns when it has obeyed.

        Raises:
            RolloutRefused: the rollout's state forbids it.
        """
        if not self._is_running:
            ended = f"is {self.coordinator.state} already"
            raise RolloutRefused(
                f"the rollout {ended if self.coordinator.state.is_final else 'has not started'}"
            )
        await self._inbox.ask(kind, why)

    async def changed(self) -> None:
        """Return when the snapshot has been replaced."""
        await self._changed.wait()

    async def run(self) -> RunRecord:
        """The rollout, from its first tick to the record of it.

        Raises:
            ModelBug: the simulator is wrong.
            HostUnreachable: a shard cannot be kept alive.
        """
        self._is_running = True
        try:
            self._log.begin(self.scenario, self.plan, self._cost_digest)
            self._step(Tick(0))
            while not self.coordinator.is_finished:
                await self._advance()
            self._books.over()
            self.record = make_record(
                self.scenario,
                self.coordinator,
                self.results,
                log_digest=self._log.stream.hexdigest(),
                cost_digest=self._cost_digest,
                costs=RunCosts(
                    wall_seconds=time.monotonic() - self._began,
                    peak_rss_bytes=await self._backend.peak_rss_bytes(),
                    backend=self._backend.name,
                    actors=len(self.shards),
                    from_journal=self._from_journal,
                ),
            )
        finally:
            self._is_running = False
            state = self.coordinator.state
            self._inbox.refuse_all(
                f"the rollout {f'is {state} already' if state.is_final else 'has broken off'}"
            )
            self._log.close()
            self._refresh()
        return self.record

    async def _advance(self) -> None:
        """One step of the coordinator, or one thing that has to come before the next."""
        if (old := self._old_requests.pop(self._steps, None)) is not None:
            self._step(old)
            return
        due = self._events[0] if self._events else None
        if self._unsent and (due is None or due[0] >= self._unsent[0].start_ns + MIN_UPDATE_NS):
            await self._send()
        elif self._inbox:
            self._obey()
        elif due is None and self.coordinator.state is not RolloutState.PAUSED:
            raise ModelBug(f"{self.coordinator.state} with nothing left that could happen")
        elif await self._pace.glance(None if due is None else due[0], self._inbox.wakeup):
            if not self._inbox:
                self._step(heapq.heappop(self._events)[-1])
        else:
            self._refresh()

    def _step(self, observation: Observation) -> str:
        """Feed the coordinator and do as it says; why it refused, "" if it did not."""
        state = self.coordinator.state
        actions = self.coordinator.step(observation)
        for action in actions:
            if isinstance(action, Refused):
                return action.why
        if isinstance(observation, Request):
            self._journal.obeyed(self._steps, observation)
        elif isinstance(observation, HostDone):
            self._end_update(observation.result)
        self._steps += 1
        for action in actions:
            if isinstance(action, StartHosts):
                self._unsent += action.commands
                for command in action.commands:
                    self._books.started(command.host)
            elif isinstance(action, WakeAt):
                heapq.heappush(self._events, (action.at_ns, 1, "", Tick(action.at_ns)))
        self._log.flush()
        self._refresh(at_once=self.coordinator.state is not state)
        return ""

    def _obey(self) -> None:
        """Put what people asked for to the coordinator, at the present virtual instant."""
        now_ns = self._now_ns()
        for kind, why, answer in self._inbox.take():
            self._inbox.answer(answer, self._step(Request(now_ns, kind, why)))

    async def _send(self) -> None:
        """Have everything computed that was started and not sent; one message a shard."""
        batch, self._unsent = self._unsent, []
        self._computing = batch
        fresh = []
        for command in batch:
            if old := self._old_results.pop((command.host, command.seq), None):
                self._take(command, old)
                self._from_journal += 1
            else:
                fresh.append(command)
        if fresh:
            await self._compute(fresh)
        self._computing = []

    async def _compute(self, fresh: Sequence[UpdateCommand]) -> None:
        self._journal.sent(fresh)
        messages: dict[int, list[UpdateCommand]] = {}
        shards = {id(shard): shard for shard in self.shards}
        for command in fresh:
            messages.setdefault(id(self._shard_of[command.host]), []).append(command)
        with self._pace.held():
            await asyncio.gather(
                *(
                    ask_in_parts(shards[key], commands, self._backend.batch, self._answered)
                    for key, commands in messages.items()
                )
            )

    def _answered(self, commands: list[UpdateCommand], results: list[UpdateResult]) -> None:
        self._journal.answered(results)
        for command, result in zip(commands, results, strict=True):
            self._take(command, result)

    def _take(self, command: UpdateCommand, result: UpdateResult) -> None:
        """Put the end of an update on the agenda."""
        check_answer(command, result)
        heapq.heappush(self._events, (result.end_ns, 0, result.host, HostDone(result)))
        self._books.answered(result)
        self._refresh(at_once=False)

    def _end_update(self, result: UpdateResult) -> None:
        self._books.ended(result)
        if self._on_result is not None:
            self._on_result(result)
        self._log.ended(result)
        self.results.append(replace(result, events=b""))

    def _now_ns(self) -> int:
        """The present virtual instant: never beyond an event that is still to come.

        That goes for events of which nobody knows yet when they will be, too.
        """
        if self.coordinator.is_finished or not self._is_running:
            return self.coordinator.now_ns
        now_ns = self._pace.now_ns(self.coordinator.now_ns)
        to_come = [event[0] for event in self._events[:1]]
        to_come += [c.start_ns + MIN_UPDATE_NS for c in (*self._computing[:1], *self._unsent[:1])]
        return min([now_ns, *to_come])

    def _refresh(self, *, at_once: bool = True) -> None:
        """Replace the snapshot and tell whoever waits for that."""
        began = time.monotonic()
        if not at_once and began < self._next_snapshot:
            return
        self.snapshot = self._books.snapshot(self._now_ns(), self.coordinator)
        took = time.monotonic() - began
        self._next_snapshot = began + max(_SNAPSHOT_SECONDS, _SNAPSHOT_RATIO * took)
        self._changed.set()
        self._changed = asyncio.Event()
        if self._on_change is not None:
            self._on_change(self)


async def run_rollout(
    scenario: Scenario,
    backend: Backend,
    journal: Journal | None = None,
    *,
    actors: int | str | None = None,
    trace_path: Path | None = None,
    on_change: Callable[[Experiment], None] | None = None,
) -> RunRecord:
    """One free-running rollout to its end; the journal is kept in memory unless given."""
    with ExitStack() as stack:
        if journal is None:
            header = journal_header(scenario, records_events=trace_path is not None)
            journal = stack.enter_context(Journal.create(None, header))
        experiment = Experiment(
            scenario, backend, journal, actors=actors, trace_path=trace_path, on_change=on_change
        )
        await experiment.open()
        return await experiment.run()
