"""One run of a sweep, and the processes in which runs go on side by side.

A worker is a process of its own that takes one run at a time, so that a run that kills it (memory,
a crash of the interpreter) costs that run and no other. Workers die with the process that
started them, however that one ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final, Self

from msgspec import Struct

from fleet.api import RunRecord
from fleet.bad_input import BadInput
from fleet.experiment import run_rollout
from fleet.launcher import LocalBackend
from fleet.results import summarise
from fleet.scenario import Scenario, load_scenario
from fleet.sweep.metrics import measure

__all__ = ["CANNOT_BE_RUN", "Job", "Outcome", "Workers", "perform"]

#: How the error of a run begins that the input is to blame for.
CANNOT_BE_RUN: Final = "cannot be run: "

_PR_SET_PDEATHSIG: Final = 1
_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM)


class Job(Struct, frozen=True):
    """One run to make: a scenario with overrides and a seed."""

    cell: str
    seed: int
    scenario: str
    overrides: tuple[str, ...]


class Outcome(Struct, frozen=True):
    """What came of a run. `error` is "" if there are metrics."""

    cell: str
    seed: int
    error: str
    state: str = ""  # of the rollout
    why: str = ""
    digest: str = ""
    metrics: dict[str, float] = {}
    wall_seconds: float = 0.0
    peak_rss_bytes: int = 0


def perform(job: Job) -> Outcome:
    """Make one run, in this process. What goes wrong is in the outcome."""
    began = time.monotonic()
    try:
        scenario = load_scenario(Path(job.scenario), job.overrides, job.seed)
    except BadInput as bad:
        said = "; ".join(map(str, bad.faults[:3]))
        return Outcome(job.cell, job.seed, f"{CANNOT_BE_RUN}{said}")
    try:
        record = asyncio.run(_roll_out(scenario))
    except Exception as bug:  # noqa: BLE001 - the outermost frame of a run, which becomes a row
        said = traceback.format_exception_only(bug)[-1].strip()
        where = traceback.extract_tb(bug.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return Outcome(job.cell, job.seed, f"the simulator itself has failed: {said} ({place})")
    return Outcome(
        cell=job.cell,
        seed=job.seed,
        error="",
        state=record.state,
        why=record.why,
        digest=record.digest,
        metrics=measure(summarise(record)),
        wall_seconds=time.monotonic() - began,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


async def _roll_out(scenario: Scenario) -> RunRecord:
    backend = LocalBackend()
    try:
        return await run_rollout(scenario, backend)
    finally:
        await backend.close()


class Workers:
    """Processes that make runs. A context manager; leaving it ends them at once."""

    def __init__(self, number: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._number = number
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        self._workers = [_Worker(self._context) for _ in range(self._number)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes' ids."""
        return tuple(worker.pid for worker in self._workers)

    @property
    def has_idle(self) -> bool:
        """Whether a worker has nothing to do."""
        return any(worker.job is None for worker in self._workers)

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way."""
        return any(worker.job is not None for worker in self._workers)

    def start(self, job: Job) -> None:
        """Have an idle worker make a run."""
        next(worker for worker in self._workers if worker.job is None).start(job)

    def ended(self) -> Iterator[Outcome]:
        """Wait until a run or more have ended, and yield what came of them."""
        busy = {worker.pipe: worker for worker in self._workers if worker.job is not None}
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index] # wait() gives back what it was given
            outcome = worker.take()
            if outcome is not None:
                yield outcome
                continue
            job = worker.job
            assert job is not None, "or it would not be busy"
            how = worker.end()
            self._workers[self._workers.index(worker)] = _Worker(self._context)
            yield Outcome(job.cell, job.seed, f"the process that made the run ended: {how}")


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, context: multiprocessing.context.SpawnContext) -> None:
        self.pipe, theirs = context.Pipe()
        self.job: Job | None = None
        self._process: SpawnProcess = context.Process(
            target=_work, args=(theirs, os.getpid()), daemon=True
        )
        resource_tracker.ensure_running()  # starting that one would let signals through again
        with _held_back():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None, "it was started"
        return self._process.pid

    def start(self, job: Job) -> None:
        self.job = job
        self.pipe.send(job)

    def take(self) -> Outcome | None:
        """The outcome of its run; None if it died."""
        try:
            outcome: Outcome = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            return None
        self.job = None
        return outcome

    def end(self) -> str:
        """Kill it; how it had ended if it had."""
        self._process.join(0 if self._process.is_alive() and self.job is None else 1)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        self.pipe.close()
        if code is None:
            return "killed"
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"


@contextmanager
def _held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of this; a process that begins in it has them blocked.

    One that is interrupted while it begins, or whose parent is, says so in a traceback. The mask is
    what it inherits; of ours another thread may take the signal, and Python then interrupts this.
    """
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in _INTERRUPTS
    }
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _work(pipe: Connection, parent: int) -> None:
    """What a worker does: a job, its outcome, the next."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    while os.getppid() == parent:  # it may have died before it could be asked to tell
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        pipe.send(perform(job))
