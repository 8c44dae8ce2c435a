"""`lufleet serve`: a living fleet, until somebody stops it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fleet.api import RolloutState, RunRecord
from fleet.bad_input import BadInput, InputFault
from fleet.console import clock_text, closing_tables, mistakes
from fleet.exit_code import ExitCode
from fleet.frame import (
    Options,
    confession,
    make_backend,
    note_actors,
    on_signals,
    open_journal,
)
from fleet.journal import Journal, JournalError, JournalUsed, journal_header
from fleet.launcher import HostUnreachable
from fleet.outputs import write_outputs
from fleet.scenario import Scenario, load_scenario
from fleet.server import BadAddress, Endpoints, Served, split_address
from fleet.server import serve as serve_fleet
from fleet.units import counted
from fleet.unwritable import CannotWrite
from node.grpc_server import AddressInUse

__all__ = ["ServeOptions", "serve"]


class ServeOptions(Options, frozen=True):
    """The options of `lufleet serve`."""

    grpc: str = "127.0.0.1:50051"
    metrics: str = "127.0.0.1:9464"
    speed: float | None = 60.0
    start: bool = False
    resume: bool = False

    def directory(self, scenario: Scenario) -> Path:
        """Apart from that of a run of the same scenario."""
        out = super().directory(scenario)
        return out if self.out is not None else out.with_name(f"{out.name}-serve")

    def resume_command(self, out: Path) -> str:
        """The command that goes on with this fleet."""
        speed = "inf" if self.speed is None else f"{self.speed:g}"
        words = ["--grpc", self.grpc, "--metrics", self.metrics, "--speed", speed]
        words += ["--start"] if self.start else []
        return self.run_command(*words, "--out", str(out), "--resume", command="serve")


def serve(options: ServeOptions, console: Console, errors: Console) -> ExitCode:
    """Serve a fleet until SIGINT or SIGTERM; results are written if a rollout has ended."""
    try:
        scenario = _load(options)
    except BadInput as bad:
        errors.print(mistakes(bad))
        return ExitCode.BAD_INPUT
    out = options.directory(scenario)
    again = f"To go on:\n  {options.resume_command(out)}"
    try:
        journal = _open_journal(options, scenario, out)
    except JournalUsed as error:
        errors.print(Text(f"{error}. {again}\nTo begin anew, name another directory with --out."))
        return ExitCode.BAD_INPUT
    except (JournalError, CannotWrite) as error:
        errors.print(Text(str(error)))
        return ExitCode.BAD_INPUT
    note_actors(options, scenario, errors)
    with journal:
        try:
            served = asyncio.run(_serve(scenario, options, journal, console))
            if served.record is not None:
                outputs = write_outputs(served.record, out)
                console.print(closing_tables(served.record, outputs.result))
                wrote = (outputs.result_json, outputs.report_html, outputs.event_store)
                console.print(Text("\n".join(f"wrote {path}" for path in wrote)), soft_wrap=True)
        except KeyboardInterrupt:
            errors.print(Text(f"interrupted. {again}"))
            return ExitCode.INTERRUPTED
        except AddressInUse as error:
            errors.print(Text(str(error)))
            return ExitCode.BAD_INPUT
        except CannotWrite as error:
            errors.print(Text(f"{error}. {again}"))
            return ExitCode.BAD_INPUT
        except HostUnreachable as error:
            errors.print(Text(f"{error}\n{again}"))
            return ExitCode.SIMULATOR_FAILED
        except Exception as bug:  # noqa: BLE001 - the outermost frame
            errors.print(confession(bug, scenario, options, out))
            return ExitCode.SIMULATOR_FAILED
        errors.print(Text(f"{_stood(served)}; {_kept(journal, out)}. {again}"))
    return _exit_code(served)


def _open_journal(options: ServeOptions, scenario: Scenario, out: Path) -> Journal:
    """The journal that lies in `out`, or a new one if there is none.

    Raises:
        JournalUsed: there is one, and nobody said that it is to be gone on with.
        JournalError: there is one, of something else, or somebody is at work there.
        CannotWrite: nothing can be written there.
    """
    path = out / "journal.sqlite"
    resume = options.resume and path.exists()
    header = journal_header(scenario, records_events=False)
    return open_journal(path, header, resume=resume, keep=True)


def _stood(served: Served) -> str:
    if not served.was_up:
        return "stopped before the hosts were up"
    if served.state is RolloutState.PENDING:
        return "stopped; the rollout was not started"
    if served.record is None and not served.state.is_final:
        return f"stopped; the rollout was under way ({served.state}) and goes on with --resume"
    if served.record is None:
        return f"stopped; the rollout was {served.state}, with hosts in flight"
    return f"stopped; the rollout was {served.state}"


def _kept(journal: Journal, out: Path) -> str:
    calls, updates = journal.calls(), len(journal.results())
    done = f"{counted(calls, 'call')} to hosts and {counted(updates, 'host update')}"
    return f"{done} are kept in {out}"


def _exit_code(served: Served) -> ExitCode:
    if not served.was_up:
        return ExitCode.INTERRUPTED
    if served.state in (RolloutState.HALTED, RolloutState.ABORTED):
        return ExitCode.HALTED
    if served.state is RolloutState.PENDING or served.record is not None:
        return ExitCode.DONE
    return ExitCode.INTERRUPTED


def _load(options: ServeOptions) -> Scenario:
    """The scenario; `BadInput` with what is wrong with it and with the addresses."""
    faults = []
    for name, address in (("--grpc", options.grpc), ("--metrics", options.metrics)):
        try:
            split_address(address)
        except BadAddress as error:
            faults.append(InputFault(name, 0, str(error)))
    try:
        scenario = load_scenario(options.scenario, options.overrides, options.seed)
    except BadInput as bad:
        raise BadInput([*faults, *bad.faults]) from None
    if faults:
        raise BadInput(faults)
    return scenario


async def _serve(
    scenario: Scenario, options: ServeOptions, journal: Journal, console: Console
) -> Served:
    stop = asyncio.Event()
    backend = make_backend(options)
    on_signals(stop.set)

    kept = _kept(journal, options.directory(scenario))
    size = f"{counted(len(scenario.hosts), 'host')}, {counted(len(scenario.vms), 'VM')}"
    # Said at once: a large fleet takes a while to boot.
    console.print(Text(f"{scenario.name}: {size}, seed {scenario.seed}"), soft_wrap=True)
    if journal.calls() or journal.has_rollout:
        console.print(Text(f"resumed  {kept}"), soft_wrap=True)
    is_under_way = journal.has_rollout

    def ready(endpoints: Endpoints) -> None:
        how = "as fast as it goes" if options.speed is None else f"at {options.speed:g} × real time"
        if is_under_way:
            what = "goes on from where it was"
        else:
            what = "has started" if options.start else "starts on FleetService.StartRollout"
        lines = (
            f"gRPC     {endpoints.grpc}  (FleetService, HostService, health, reflection)",
            f"metrics  http://{endpoints.metrics}/metrics",
            f"The rollout {what} and runs {how}. Ctrl-C stops.",
        )
        console.print(Text("\n".join(lines)), soft_wrap=True)

    def over(record: RunRecord) -> None:
        when = clock_text(record.virtual_ns)
        left = "results are written when the server is stopped"
        text = Text(f"rollout {record.state} at {when}: {record.why}; {left}")
        console.print(text, soft_wrap=True)

    try:
        return await serve_fleet(
            scenario,
            backend,
            journal,
            stop,
            grpc_address=options.grpc,
            metrics_address=options.metrics,
            actors=options.actors,
            speed=options.speed,
            start=options.start,
            on_ready=ready,
            on_over=over,
        )
    finally:
        await backend.close()
