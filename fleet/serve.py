"""`lufleet serve`: a living fleet, until somebody stops it."""

from __future__ import annotations

import asyncio

from rich.console import Console
from rich.text import Text

from fleet.api import RunRecord
from fleet.bad_input import BadInput, InputFault
from fleet.console import closing_tables, mistakes
from fleet.experiment import journal_header
from fleet.frame import ExitCode, Options, confession, make_backend, on_signals, open_journal
from fleet.journal import Journal, JournalError
from fleet.launcher import HostUnreachable
from fleet.outputs import write_outputs
from fleet.scenario import Scenario, load_scenario
from fleet.server import BadAddress, Endpoints, split_address
from fleet.server import serve as serve_fleet
from node.grpc_server import AddressInUse

__all__ = ["ServeOptions", "serve"]


class ServeOptions(Options, frozen=True):
    """The options of `lufleet serve`."""

    grpc: str = "127.0.0.1:50051"
    metrics: str = "127.0.0.1:9464"
    speed: float | None = 60.0
    start: bool = False


def serve(options: ServeOptions, console: Console, errors: Console) -> ExitCode:
    """Serve a fleet until SIGINT or SIGTERM; results are written if a rollout has ended."""
    try:
        scenario = _load(options)
    except BadInput as bad:
        errors.print(mistakes(bad))
        return ExitCode.BAD_INPUT
    out = options.directory(scenario)
    if options.out is None:
        out = out.with_name(f"{out.name}-serve")
    header = journal_header(scenario, records_events=False)
    try:
        journal = open_journal(out / "journal.sqlite", header)
    except (JournalError, OSError) as error:
        errors.print(Text(str(error)))
        return ExitCode.BAD_INPUT
    with journal:
        try:
            record = asyncio.run(_serve(scenario, options, journal, console))
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED
        except AddressInUse as error:
            errors.print(Text(str(error)))
            return ExitCode.BAD_INPUT
        except HostUnreachable as error:
            errors.print(Text(str(error)))
            return ExitCode.SIMULATOR_FAILED
        except Exception as bug:  # noqa: BLE001 - the outermost frame
            errors.print(confession(bug, scenario, options, out))
            return ExitCode.SIMULATOR_FAILED
    if record is not None:
        outputs = write_outputs(record, out)
        console.print(closing_tables(record, outputs.result))
        console.print(Text(f"wrote {outputs.result_json}\nwrote {outputs.report_html}"))
    return ExitCode.DONE


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
) -> RunRecord | None:
    stop = asyncio.Event()
    backend = make_backend(options)
    on_signals(stop.set)

    def ready(endpoints: Endpoints) -> None:
        how = "as fast as it goes" if options.speed is None else f"at {options.speed:g} × real time"
        what = "has started" if options.start else "starts on FleetService.StartRollout"
        size = f"{len(scenario.hosts)} hosts, {len(scenario.vms)} VMs"
        lines = (
            f"{scenario.name}: {size}, seed {scenario.seed}",
            f"gRPC     {endpoints.grpc}  (FleetService, HostService, health, reflection)",
            f"metrics  http://{endpoints.metrics}/metrics",
            f"The rollout {what} and runs {how}. Ctrl-C stops.",
        )
        console.print(Text("\n".join(lines)), soft_wrap=True)

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
        )
    finally:
        await backend.close()
