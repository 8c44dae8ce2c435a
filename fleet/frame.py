"""The outermost frame of a command: what `lufleet run` and `lufleet serve` have in common.

Here alone a `ModelBug` is caught, and any other exception that nobody foresaw: the simulator is
wrong then as well. It is told with the seed and the command that replays it; what was computed
before it is in the journal.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.text import Text

from fleet.journal import Header, Journal
from fleet.launcher import Backend, LocalBackend, RayBackend
from fleet.scenario import Scenario
from fleet.units import counted
from fleet.unwritable import make_directory

__all__ = [
    "Options",
    "confession",
    "make_backend",
    "note_actors",
    "on_signals",
    "open_journal",
]


class Options(Struct, frozen=True):
    """What `run` and `serve` are told alike, as it was given."""

    scenario: Path
    seed: int | None = None
    overrides: tuple[str, ...] = ()
    backend: str = "ray"
    actors: int | str | None = None
    address: str | None = None  # of a Ray cluster to join
    actor_cpus: float | None = None  # what an actor asks for there
    out: Path | None = None

    def directory(self, scenario: Scenario) -> Path:
        """Where results go: unless said otherwise the same place for the same content."""
        if self.out is not None:
            return self.out
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in scenario.name)
        return Path("runs") / f"{name}-seed{scenario.seed}-{scenario.digest[:8]}"

    def run_command(
        self, *flags: str, seed: int | None = None, backend: str = "", command: str = "run"
    ) -> str:
        """The `lufleet run` that does the same, for people to copy."""
        words = ["lufleet", command, str(self.scenario)]
        seed = self.seed if seed is None else seed
        if seed is not None:
            words += ["--seed", str(seed)]
        for override in self.overrides:
            words += ["--set", override]
        words += ["--backend", backend or self.backend]
        for name in ("actors", "address", "actor_cpus"):
            if (value := getattr(self, name)) is not None and not backend:
                words += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join([*words, *flags])


def open_journal(
    path: Path, header: Header, *, resume: bool = False, keep: bool = False
) -> Journal:
    """A new journal, in a directory that is made if need be, or that of an interrupted run.

    Raises:
        JournalError: there is nothing to resume, or somebody else is at work there.
        JournalUsed: with `keep`, if a journal there has something in it.
        CannotWrite: nothing can be written there.
    """
    if resume:
        return Journal.resume(path, header)
    make_directory(path.parent)
    return Journal.create(path, header, keep=keep)


def make_backend(options: Options) -> Backend:
    """The backend that was asked for. Ray takes some seconds to start."""
    if options.backend != "ray":
        return LocalBackend()
    return RayBackend(options.address, actor_cpus=options.actor_cpus)


def note_actors(options: Options, scenario: Scenario, errors: Console) -> None:
    """Say so if more actors are asked for than there are hosts to share out."""
    hosts = len(scenario.hosts)
    if isinstance(options.actors, int) and options.actors > hosts:
        used = f"{hosts} are used" if hosts != 1 else "1 is used"
        fleet = f"the fleet has {counted(hosts, 'host')}"
        errors.print(Text(f"--actors {options.actors}: {fleet}, so {used}"))


def on_signals(callback: Callable[[], object]) -> None:
    """Call back on the first SIGINT or SIGTERM; a second one ends the process as usual.

    To be called when the backend is there: Ray installs handlers of its own.
    """
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def first() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
        callback()

    for number in numbers:
        loop.add_signal_handler(number, first)


def confession(bug: Exception, scenario: Scenario, options: Options, out: Path) -> Text:
    """The simulator is wrong: keep the traceback, say so, and how to see it again."""
    path = out / "model-bug.txt"
    trace = "".join(traceback.format_exception(bug))
    try:
        path.write_text(trace)
        where = f"the traceback is in {path}."
    except OSError:
        where = f"the traceback:\n{trace}\n"
    said = traceback.format_exception_only(bug)[-1].strip().splitlines()[-1]
    return Text(
        f"the simulator itself has failed: {said}\n"
        f"seed {scenario.seed}; {where} To see it again:\n"
        f"  {options.run_command(seed=scenario.seed, backend='local')}"
    )
