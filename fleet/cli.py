"""The command line. Thin: it reads options, and others do the rest.

Exit codes: 0 done; 2 bad input, nothing was started; 3 the rollout was halted by its gates or
aborted; 4 the simulator itself failed; 130 interrupted, the state is kept.

Everything that a command needs is imported by the command: `lufleet --help` answers at once.
"""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from fleet.cli_conform import conform
from fleet.cli_designs import designs
from fleet.cli_inspect import inspect
from fleet.cli_record import record
from fleet.cli_releases import releases
from fleet.unwritable import CannotWrite, printing

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Simulate a fleet of hypervisor hosts whose kernels are replaced under running VMs.",
    epilog="Exit codes: 0 done; 2 bad input; 3 the rollout was halted or aborted; 4 the simulator "
    "itself failed; 130 interrupted, which --resume goes on from.",
)


class BackendName(enum.StrEnum):
    """Where shards run."""

    RAY = "ray"
    LOCAL = "local"


def _actors(text: str) -> str:
    if text == "per-host" or (text.isdecimal() and int(text) > 0):
        return text
    raise typer.BadParameter(f"{text!r} is neither a number of actors nor per-host")


def _speed(speed: float) -> float:
    if not speed > 0:
        raise typer.BadParameter(f"{speed} is not a speed: more than 0 is")
    return speed


_Scenario = Annotated[Path, typer.Argument(metavar="SCENARIO.toml", show_default=False)]
_Seed = Annotated[
    int | None, typer.Option(help="Replaces the scenario's seed.", show_default=False)
]
_Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=V",
        help="Replaces a value of the scenario; may be given again.",
        show_default=False,
    ),
]
_Backend = Annotated[
    BackendName, typer.Option(help="Where hosts are simulated: Ray actors, or this process.")
]
_Actors = Annotated[
    str | None,
    typer.Option(
        metavar="N|per-host",
        parser=_actors,
        help="Shards that the fleet is split into; if not given, one per host up to 32 hosts, "
        "one per processor beyond.",
        show_default=False,
    ),
]
_Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT|auto",
        help="Join this Ray cluster instead of starting a Ray on this machine; RAY_ADDRESS does so "
        "too.",
        show_default=False,
    ),
]
_ActorCpus = Annotated[
    float | None,
    typer.Option(
        min=0.0001,
        max=1,
        help="CPUs that an actor asks of a cluster that is joined, for one that grows on demand; "
        "if not given, an equal share of those that are there.",
        show_default=False,
    ),
]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"lufleet {version('lufleet')}")
        raise typer.Exit


@app.callback()
def _lufleet(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    scenario: _Scenario,
    seed: _Seed = None,
    set_: _Set = None,
    backend: _Backend = BackendName.RAY,
    actors: _Actors = None,
    address: _Address = None,
    actor_cpus: _ActorCpus = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for results; if not given, runs/NAME-seedN-DIGEST (the scenario's).",
            show_default=False,
        ),
    ] = None,
    trace_out: Annotated[
        Path | None,
        typer.Option(help="Write every event to this file.", show_default=False),
    ] = None,
    dump_image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST=FILE",
            help="Write what a host's kernel hands over at the jump, for lufleet inspect; HOST may "
            "be first, the first one updated. May be given again.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
) -> None:
    """Roll an update out over a fleet, as fast as it can be simulated."""
    from fleet.dump_image import Dump
    from fleet.run import RunOptions
    from fleet.run import run as run_rollout
    from fleet.standard_output import consoles

    _check_backend(backend, address)
    options = RunOptions(
        scenario=scenario,
        seed=seed,
        overrides=tuple(set_ or ()),
        backend=backend.value,
        actors=_number(actors),
        address=address,
        actor_cpus=actor_cpus,
        out=out,
        trace_out=trace_out,
        resume=resume,
        dumps=tuple(Dump(host, Path(file)) for host, file in map(_host_file, dump_image or ())),
    )
    raise typer.Exit(run_rollout(options, *consoles()))


@app.command()
def sweep(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for results; if not given, runs/sweep-NAME.", show_default=False
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Runs at a time; if not given, one per processor.",
            show_default=False,
        ),
    ] = None,
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive", help="Give each cell seeds until its interval is narrow enough."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the runs that the directory holds.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: make failed runs again.")
    ] = False,
) -> None:
    """Run a scenario over many seeds and parameters, in parallel, and compare.

    Every run is a row of one DuckDB file (and of one Parquet file), written as
    soon as it has ended; runs that fail are rows too. A sweep that was
    interrupted, or killed, goes on with --resume without making a run twice.
    """
    from fleet.standard_output import consoles
    from fleet.sweep.command import SweepOptions
    from fleet.sweep.command import sweep as run_experiment

    if retry_failed and not resume:
        raise typer.BadParameter("--retry-failed goes with --resume")
    options = SweepOptions(
        experiment=experiment,
        out=out,
        jobs=jobs,
        adaptive=adaptive,
        resume=resume,
        retry_failed=retry_failed,
    )
    raise typer.Exit(run_experiment(options, *consoles()))


@app.command()
def check(scenario: _Scenario, seed: _Seed = None, set_: _Set = None) -> None:
    """Check a scenario and show what it says, without running it."""
    from fleet.bad_input import BadInput
    from fleet.check import summary
    from fleet.console import mistakes
    from fleet.scenario import read_scenario
    from fleet.standard_output import consoles

    out, errors = consoles()
    try:
        reading = read_scenario(scenario, tuple(set_ or ()), seed)
    except BadInput as bad:
        errors.print(mistakes(bad))
        raise typer.Exit(2) from None
    out.print(summary(reading))


@app.command()
def serve(
    scenario: _Scenario,
    grpc: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:50051",
    metrics: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:9464",
    speed: Annotated[
        float, typer.Option(callback=_speed, help="Virtual seconds a real second; inf: at once.")
    ] = 60.0,
    start: Annotated[
        bool, typer.Option("--start", help="Start the rollout without being asked by gRPC.")
    ] = False,
    seed: _Seed = None,
    set_: _Set = None,
    backend: _Backend = BackendName.RAY,
    actors: _Actors = None,
    address: _Address = None,
    actor_cpus: _ActorCpus = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the journal and results; if not given, one below runs/.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what the directory holds, if anything.")
    ] = False,
) -> None:
    """Keep a fleet alive behind gRPC and Prometheus metrics, until SIGINT or SIGTERM.

    Exits then with 0 if no rollout was started or it was completed, with 3 if
    it was halted or aborted, with 130 if it was under way. What was done is
    kept: --resume brings the hosts back as they were, and a rollout that was
    under way goes on by itself.
    """
    from fleet.serve import ServeOptions
    from fleet.serve import serve as serve_fleet
    from fleet.standard_output import consoles

    _check_backend(backend, address)
    options = ServeOptions(
        scenario=scenario,
        seed=seed,
        overrides=tuple(set_ or ()),
        backend=backend.value,
        actors=_number(actors),
        address=address,
        actor_cpus=actor_cpus,
        out=out,
        grpc=grpc,
        metrics=metrics,
        speed=None if speed == float("inf") else speed,
        start=start,
        resume=resume,
    )
    raise typer.Exit(serve_fleet(options, *consoles()))


def _host_file(text: str) -> tuple[str, str]:
    host, _, file = text.partition("=")
    if not host or not file:
        raise typer.BadParameter(f"{text!r} is not HOST=FILE", param_hint="--dump-image")
    return host, file


def _number(actors: str | None) -> int | str | None:
    return actors if actors is None or actors == "per-host" else int(actors)


def _check_backend(backend: BackendName, address: str | None) -> None:
    from importlib.util import find_spec

    from fleet.launcher import fault_of_address

    if backend is not BackendName.RAY and address is not None:
        raise typer.BadParameter("--address is that of a Ray cluster; use --backend ray with it")
    if backend is BackendName.RAY and (wrong := fault_of_address(address)):
        raise typer.BadParameter(wrong, param_hint="--address or RAY_ADDRESS")
    if backend is BackendName.RAY and find_spec("ray") is None:
        raise typer.BadParameter(
            "Ray is not installed; pip install 'lufleet[ray]', or use --backend local"
        )


app.command()(inspect)
app.command()(releases)
app.command()(designs)
app.command()(conform)
app.command()(record)


def main() -> None:
    """The `lufleet` command."""
    try:
        with printing():  # of --help and --version
            app()
    except CannotWrite as error:  # standard output; what else is written, the commands tell
        typer.echo(error, err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
