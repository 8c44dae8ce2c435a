"""`lufleet run`: one rollout, from its scenario to its results and an exit code."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from fleet.api import RolloutState, RunRecord
from fleet.bad_input import BadInput, InputFault
from fleet.console import Progression, closing_tables, mistakes
from fleet.dump_image import Dump, DumpError, resolved, write_dumps
from fleet.exit_code import ExitCode
from fleet.experiment import Experiment
from fleet.frame import (
    Options,
    confession,
    make_backend,
    note_actors,
    on_signals,
    open_journal,
)
from fleet.journal import Journal, JournalError, journal_header
from fleet.launcher import HostUnreachable
from fleet.outputs import Outputs, write_outputs
from fleet.plan import make_plan
from fleet.scenario import Scenario, load_scenario
from fleet.units import counted
from fleet.unwritable import CannotWrite, writing

__all__ = ["RunOptions", "run"]


#: What lies in the directory of every run.
_OWN_FILES: Final = ("journal.sqlite", "result.json", "report.html", "run.duckdb")


class RunOptions(Options, frozen=True):
    """The options of `lufleet run`."""

    trace_out: Path | None = None
    resume: bool = False
    dumps: tuple[Dump, ...] = ()

    def resume_command(self, out: Path) -> str:
        """The command that goes on with this run."""
        trace = () if self.trace_out is None else ("--trace-out", str(self.trace_out))
        dumps = [w for d in self.dumps for w in ("--dump-image", f"{d.host}={d.path}")]
        return self.run_command("--out", str(out), *trace, *dumps, "--resume")


def run(options: RunOptions, console: Console, errors: Console) -> ExitCode:
    """One rollout to its end, told on `console`; what goes wrong is told on `errors`."""
    try:
        scenario = load_scenario(options.scenario, options.overrides, options.seed)
        out = options.directory(scenario)
        _refuse_collisions(options, out)
        dumps, wrong = resolved(options.dumps, make_plan(scenario))
        if wrong:
            raise BadInput(wrong)
    except BadInput as bad:
        errors.print(mistakes(bad))
        return ExitCode.BAD_INPUT
    try:
        journal = _prepare(options, scenario, out, errors)
    except (JournalError, CannotWrite) as error:
        errors.print(Text(str(error)))
        return ExitCode.BAD_INPUT
    note_actors(options, scenario, errors)
    with journal:
        try:
            record, outputs, dumped = asyncio.run(
                _run(scenario, options, dumps, journal, out, console)
            )
        except (asyncio.CancelledError, KeyboardInterrupt):
            count = len(journal.results())
            kept = f"{counted(count, 'host update')} {'is' if count == 1 else 'are'} kept"
            again = options.resume_command(out)
            errors.print(Text(f"interrupted; {kept}. To go on:\n  {again}"))
            return ExitCode.INTERRUPTED
        except HostUnreachable as error:
            again = options.resume_command(out)
            errors.print(Text(f"{error}\nTo go on from where it was:\n  {again}"))
            return ExitCode.SIMULATOR_FAILED
        except (CannotWrite, DumpError) as error:
            again = options.resume_command(out)
            errors.print(Text(f"{error}. To go on from where it was:\n  {again}"))
            return ExitCode.BAD_INPUT
        except Exception as bug:  # noqa: BLE001 - the outermost frame
            errors.print(confession(bug, scenario, options, out))
            return ExitCode.SIMULATOR_FAILED
    written = [outputs.result_json, outputs.report_html, outputs.event_store]
    if options.trace_out is not None:
        written.append(options.trace_out)
    lines = [f"wrote {path}" for path in written] + dumped
    try:
        console.print(closing_tables(record, outputs.result))
        console.print(Text("\n".join(lines)), soft_wrap=True)
    except CannotWrite as error:
        errors.print(Text(f"{error}. The rollout has ended, {record.state}; results are in {out}"))
        return ExitCode.BAD_INPUT
    return ExitCode.DONE if record.state is RolloutState.COMPLETED else ExitCode.HALTED


def _refuse_collisions(options: RunOptions, out: Path) -> None:
    """Let no output replace the scenario or another one.

    Raises:
        BadInput: one would.
    """
    taken = {(out / name).resolve(): "is written by every run" for name in _OWN_FILES}
    taken[options.scenario.resolve()] = "is the scenario"
    wanted = [(f"--dump-image {dump.host}={dump.path}", dump.path) for dump in options.dumps]
    if options.trace_out is not None:
        wanted.insert(0, (f"--trace-out {options.trace_out}", options.trace_out))
    wrong = []
    for option, path in wanted:
        if path.is_char_device():
            continue
        place = path.resolve()
        if place in taken:
            wrong.append(InputFault(option, 0, taken[place], "choose another name"))
        taken.setdefault(place, f"is the file of {option} as well")
    if wrong:
        raise BadInput(wrong)


def _prepare(options: RunOptions, scenario: Scenario, out: Path, errors: Console) -> Journal:
    """The run's journal, in a directory where nothing of another run is left to be mistaken.

    Raises:
        JournalError: there is nothing to resume, or another run is at work there.
        CannotWrite: something cannot be written.
    """
    header = journal_header(scenario, records_events=options.trace_out is not None)
    path, result = out / "journal.sqlite", out / "result.json"
    was_interrupted = path.exists() and not result.exists()
    if options.trace_out is not None:
        with writing(options.trace_out):
            options.trace_out.parent.mkdir(parents=True, exist_ok=True)
            options.trace_out.open("ab").close()
    journal = open_journal(path, header, resume=options.resume)
    with writing(result):
        result.unlink(missing_ok=True)
    if was_interrupted and not options.resume:
        errors.print(Text(f"this replaces an interrupted run in {out}; --resume goes on with one"))
    return journal


async def _run(
    scenario: Scenario,
    options: RunOptions,
    dumps: list[Dump],
    journal: Journal,
    out: Path,
    console: Console,
) -> tuple[RunRecord, Outputs, list[str]]:
    """The record, what was made of it, and what became of the images.

    Results are written while the backend ends, which takes Ray more than a second.
    """
    began = time.monotonic()  # Ray's start is part of what a run takes
    with Progression(console) as progression:
        backend = make_backend(options)
        try:
            experiment = Experiment(
                scenario,
                backend,
                journal,
                actors=options.actors,
                trace_path=options.trace_out,
                on_change=progression,
                began=began,
                keep_images=frozenset(dump.host for dump in dumps),
            )
            await experiment.open()
            running = asyncio.ensure_future(experiment.run())
            on_signals(running.cancel)
            record, dumped = await running, await write_dumps(experiment, dumps)
            outputs = asyncio.ensure_future(asyncio.to_thread(write_outputs, record, out))
        finally:
            await backend.close()
        return record, await outputs, dumped
