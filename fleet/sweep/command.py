"""`lufleet sweep`: an experiment from its file to its table, its plots and an exit code."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from msgspec import Struct
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fleet.bad_input import BadInput
from fleet.console import mistakes
from fleet.exit_code import ExitCode
from fleet.sweep.analysis import Analysis, analyse
from fleet.sweep.cells import Cell, cells_of
from fleet.sweep.experiment_file import read_plan
from fleet.sweep.plan import SweepPlan
from fleet.sweep.report import write_sweep_report
from fleet.sweep.runner import Agenda, Run, run_sweep
from fleet.sweep.store import Store, StoreError
from fleet.sweep.tables import setting_text, show_closing
from fleet.sweep.worker import CANNOT_BE_RUN, Outcome
from fleet.units import counted
from fleet.unwritable import CannotWrite, make_directory, writing

__all__ = ["SweepOptions", "sweep"]


class SweepOptions(Struct, frozen=True):
    """The options of `lufleet sweep`."""

    experiment: Path
    out: Path | None = None
    jobs: int | None = None
    adaptive: bool = False
    resume: bool = False
    retry_failed: bool = False

    def directory(self, plan: SweepPlan) -> Path:
        """Where results go unless it was said: the same place for the same name."""
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in plan.name)
        return self.out if self.out is not None else Path("runs") / f"sweep-{name}"


def sweep(options: SweepOptions, console: Console, errors: Console) -> ExitCode:
    """Run what is left to be run of an experiment and say what it came to."""
    try:
        plan = read_plan(options.experiment)
    except BadInput as bad:
        errors.print(mistakes(bad))
        return ExitCode.BAD_INPUT
    cells = cells_of(plan)
    out = options.directory(plan)
    try:
        make_directory(out)
        with Store(out / "sweep.duckdb", plan) as store:
            return _sweep(options, plan, cells, store, out, console, errors)
    except (StoreError, CannotWrite) as error:
        errors.print(Text(str(error)))
        return ExitCode.BAD_INPUT


def _sweep(
    options: SweepOptions,
    plan: SweepPlan,
    cells: tuple[Cell, ...],
    store: Store,
    out: Path,
    console: Console,
    errors: Console,
) -> ExitCode:
    if options.retry_failed:
        store.forget_failed()
    before = store.outcomes()
    if before and not options.resume:
        held = f"{store.path} holds {counted(len(before), 'run')} already"
        raise StoreError(f"{held}: --resume goes on with them, another --out begins anew")
    store.agree(cells)
    agenda = Agenda(plan, cells, adaptive=options.adaptive)
    for outcome in before:
        agenda.ended(outcome)
    by_key = {cell.key: cell for cell in cells}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with _Progress(console, plan, by_key, agenda) as progress:
            run_sweep(
                agenda,
                options.jobs or os.cpu_count() or 1,
                lambda outcome: store.add(by_key[outcome.cell], outcome),
                progress,
            )
    except KeyboardInterrupt:
        kept = counted(len(store.outcomes()), "run")
        errors.print(Text(f"interrupted; {kept} are kept. To go on:\n  {_again(options, out)}"))
        return ExitCode.INTERRUPTED
    except CannotWrite as error:
        errors.print(Text(f"{error}. To go on from where it was:\n  {_again(options, out)}"))
        return ExitCode.BAD_INPUT
    analysis = analyse(plan, cells, store.outcomes())
    _write(analysis, store, out, console)
    return ExitCode.DONE if analysis.runs else _failed(plan, by_key, store.outcomes(), errors)


def _failed(
    plan: SweepPlan, cells: Mapping[str, Cell], outcomes: Sequence[Outcome], errors: Console
) -> ExitCode:
    """No run yielded a result: say how to see one fail, and whose fault it is."""
    failed = [outcome for outcome in outcomes if outcome.cell in cells]
    ours = [outcome for outcome in failed if not outcome.error.startswith(CANNOT_BE_RUN)]
    first = (ours or failed)[0]
    words = ["lufleet", "run", str(plan.scenario), "--seed", str(first.seed)]
    words += [word for override in cells[first.cell].overrides for word in ("--set", override)]
    again = shlex.join([*words, "--backend", "local"])
    errors.print(Text(f"no run yielded a result; to see one of them fail:\n  {again}"))
    return ExitCode.SIMULATOR_FAILED if ours else ExitCode.BAD_INPUT


def _write(analysis: Analysis, store: Store, out: Path, console: Console) -> None:
    parquet, report = out / "runs.parquet", out / "report.html"
    store.write_parquet(parquet)
    with writing(report):
        write_sweep_report(analysis, report)
    lines = [f"wrote {path}" for path in (store.path, parquet, report)]
    show_closing(analysis, console)
    console.print(Text("\n".join(lines)), soft_wrap=True)


def _again(options: SweepOptions, out: Path) -> str:
    words = ["lufleet", "sweep", str(options.experiment), "--out", str(out)]
    words += [] if options.jobs is None else ["--jobs", str(options.jobs)]
    words += ["--adaptive"] if options.adaptive else []
    return shlex.join([*words, "--resume"])


class _Progress:
    """A bar on a terminal, a line for each tenth elsewhere; a line for each run that fails."""

    def __init__(
        self, console: Console, plan: SweepPlan, cells: Mapping[str, Cell], agenda: Agenda
    ) -> None:
        self._console = console
        self._plan = plan
        self._cells = cells
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        left = agenda.total - agenda.done
        again = f", {counted(agenda.done, 'run')} done before" if agenda.done else ""
        told = f"{plan.name}: {counted(len(cells), 'cell')}, {counted(left, 'run')} to make{again}"
        self._say(told)
        self._tenth = agenda.done * 10 // max(1, agenda.total)
        self._task = self._bar.add_task("runs", total=agenda.total, completed=agenda.done)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, run: Run) -> None:
        self._bar.update(self._task, completed=run.done, total=run.total)
        tenth = run.done * 10 // run.total
        if tenth > self._tenth and not self._console.is_terminal:
            self._say(f"{run.done} of {run.total} runs")
        self._tenth = tenth
        if run.outcome.error:
            setting = setting_text(self._plan, self._cells[run.outcome.cell])
            self._say(f"{setting}, seed {run.outcome.seed}: {run.outcome.error}")

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)
