"""A run's log: the coordinator's stream of events, and the file that all streams can go to."""

from __future__ import annotations

from pathlib import Path

from fleet.plan import RolloutPlan
from fleet.scenario import Scenario
from fleet.unwritable import writing
from kernelmodel.sim.trace import Trace, TraceFile
from node.api import UpdateResult

__all__ = ["RunLog"]


class RunLog:
    """`stream` is the coordinator's; with a path every stream is written there as it grows.

    Every method but `begin` raises `CannotWrite` if that file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.stream = Trace("fleet", record=path is not None)
        self._path = path or Path()
        with writing(self._path):
            self._file = None if path is None else TraceFile(path)

    @property
    def wants_events(self) -> bool:
        """Whether shards have to send their hosts' events along."""
        return self._file is not None

    def begin(self, scenario: Scenario, plan: RolloutPlan, cost_digest: str) -> None:
        """Note what a run's digest rests on besides the events themselves."""
        self.stream.emit(
            0,
            "plan",
            scenario=scenario.digest,
            costs=cost_digest,
            target=plan.target_release,
            hosts=len(plan.hosts),
            waves=len(plan.waves),
        )

    def ended(self, result: UpdateResult) -> None:
        """Write a host's events."""
        if self._file is not None:
            with writing(self._path):
                self._file.write(f"host/{result.host}", result.events)

    def flush(self) -> None:
        """Write the coordinator's events so far."""
        if self._file is not None:
            with writing(self._path):
                self._file.write(self.stream.stream, self.stream.take_events())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with writing(self._path):
                self._file.close()
