"""`lufleet designs`: the designs for hugetlb's shared state side by side on one host."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from fleet.bad_input import Faults, did_you_mean
from fleet.costs import read_cost_file
from fleet.designs.compare import Compared, Curve, as_json, compare, curves
from fleet.designs.host import NoLiveUpdate
from fleet.designs.report import write_designs_report
from fleet.designs.spec import PRESETS, HostSpec
from fleet.designs.table import print_tables
from fleet.exit_code import ExitCode
from fleet.units import Unfit, counted, parse_size, show_size
from fleet.unwritable import CannotWrite, writing
from kernelmodel.errors import KernelError
from kernelmodel.hugetlb_designs import DESIGNS
from kernelmodel.memory import GIB, MIB
from kernelmodel.sim.cost import CostModel, format_profile

__all__ = ["DesignsOptions", "designs"]

_ONE_POOL = 88
_LEAST, _MOST = 16 * GIB, 64 << 40
_PAGE_SIZES = {"2MiB": 2 * MIB, "1GiB": GIB}
#: What a number of the host is called as an option, and from where to where it may go.
_NUMBERS = {
    "vms": ("vms", 1, 5_000),
    "pool_use": ("pool_use", 1, 100),
    "guest_memfd": ("guest_memfd_share", 0, 100),
    "nodes": ("nodes", 1, 16),
}


class DesignsOptions(Struct, frozen=True):
    """The options of `lufleet designs`; what is None is the preset's."""

    host: str = "2TiB"
    memory: str | None = None
    vms: int | None = None
    pool_use: int | None = None
    guest_memfd_share: int | None = None
    page_size: str | None = None
    nodes: int | None = None
    design: tuple[str, ...] = ()
    costs: Path | None = None
    json: bool = False
    out: Path | None = None


class _Wrong(Exception):
    """What is wrong with the options, all of it."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))


def _asked(options: DesignsOptions) -> tuple[HostSpec, CostModel]:
    """The host that was described, and what work costs on it. Raises: _Wrong."""
    wrong_costs = Faults()
    costs = ""
    if options.costs is not None:
        costs = format_profile(read_cost_file(options.costs, ("--costs", 0), wrong_costs))
    faults: list[str] = []
    spec = _spec(options, faults)
    faults += map(str, wrong_costs.all())
    if faults:
        raise _Wrong(faults)
    return spec, CostModel.load(costs)


def _spec(options: DesignsOptions, faults: list[str]) -> HostSpec:
    """The host that was described; of no use if there are faults."""
    faults += [
        f'--design: there is no design "{name}", {did_you_mean(name, DESIGNS, noun="designs")}'
        for name in options.design
        if name not in DESIGNS
    ]
    if options.host not in PRESETS:
        hint = did_you_mean(options.host, PRESETS, noun="hosts")
        faults.append(f'--host: there is no host "{options.host}", {hint}')
    changed: dict[str, object] = {}
    for field, (option, least, most) in _NUMBERS.items():
        value = getattr(options, option)
        if value is not None:
            changed[field] = value
            if not least <= value <= most:
                name = option.replace("_", "-")
                faults.append(f"--{name}: {value} is not from {least} to {most}")
    if options.memory is not None:
        try:
            changed["memory"] = _memory(options.memory)
        except Unfit as unfit:
            faults.append(f"--memory: {unfit}")
    if options.page_size is not None:
        changed["pools"] = ((_PAGE_SIZES.get(options.page_size, GIB), _ONE_POOL),)
        if options.page_size not in _PAGE_SIZES:
            faults.append(f'--page-size: "{options.page_size}" is neither 2MiB nor 1GiB')
    preset = PRESETS.get(options.host, HostSpec())
    return replace(preset, **changed)  # type: ignore[arg-type]  # its own fields, by name


def _memory(given: str) -> int:
    """Bytes. Raises: Unfit."""
    memory = parse_size(given)
    if not _LEAST <= memory <= _MOST:
        raise Unfit(f"{show_size(memory)} is not from 16GiB to 64TiB")
    return memory // GIB * GIB


def designs(options: DesignsOptions, console: Console, errors: Console) -> ExitCode:
    """Run them and show what it came to."""
    try:
        spec, cost = _asked(options)
        if options.out is not None:
            with writing(options.out):
                options.out.mkdir(parents=True, exist_ok=True)
    except (_Wrong, CannotWrite) as wrong:
        errors.print(Text(str(wrong)))
        return ExitCode.BAD_INPUT
    names = list(dict.fromkeys(options.design)) or list(DESIGNS)
    try:
        found, plots = _run(spec, names, cost, errors, with_plots=options.out is not None)
    except NoLiveUpdate as error:
        errors.print(Text(f"such a host has no live update, its pools are too large: {error}"))
        return ExitCode.BAD_INPUT
    except KernelError as error:
        errors.print(Text(f"such a host cannot start its VMs: {error}"))
        return ExitCode.BAD_INPUT
    everything = as_json(spec, found, plots) | {"cost_digest": cost.digest()}
    wrote = None
    if options.out is not None:  # before standard output, which may take no more
        try:
            wrote = _write(options.out, everything, title(spec, options.costs), found, plots)
        except CannotWrite as error:
            errors.print(Text(str(error)))
            return ExitCode.BAD_INPUT
    if options.json:
        console.print(Text(json.dumps(everything, indent=2)), soft_wrap=True)
    else:
        console.print(print_tables(found, title(spec, options.costs), console.width))
    if wrote is not None:
        (errors if options.json else console).print(wrote, soft_wrap=True)
    return ExitCode.DONE


def title(spec: HostSpec, costs: Path | None) -> str:
    """The host in a line."""
    pools = ", ".join(f"{pages:,} × {show_size(size)}" for size, pages in spec.pool_pages().items())
    vms = len(spec.vm_specs())
    nodes = counted(spec.nodes, "node")
    fewer = f" ({spec.vms:,} asked for, more than there are pages)" if vms < spec.vms else ""
    return (
        f"{show_size(spec.memory)} on {nodes}, {counted(vms, 'VM')}{fewer}, pools of {pools}, "
        f"{spec.pool_use}% in use, {spec.guest_memfd}% of the VMs on guest_memfd"
        + (f", costs of {costs}" if costs is not None else "")
    )


def _run(
    spec: HostSpec, names: list[str], cost: CostModel, errors: Console, *, with_plots: bool
) -> tuple[list[Compared], dict[str, list[Curve]]]:
    plots: dict[str, list[Curve]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("designs", total=len(names) * (1 + with_plots))
        found = compare(spec, names, cost, lambda _name: progress.advance(task))
        if with_plots:
            for one in found:
                plots[one.name] = curves(spec, one, cost)
                progress.advance(task)
    return found, plots


def _write(
    out: Path,
    everything: dict[str, object],
    heading: str,
    found: list[Compared],
    plots: dict[str, list[Curve]],
) -> Text:
    """What was written, in words. Raises: CannotWrite."""
    data, report = out / "designs.json", out / "report.html"
    with writing(data):
        data.write_text(json.dumps(everything, indent=2) + "\n", "utf-8")
    with writing(report):
        write_designs_report(heading, found, plots, report)
    return Text(f"wrote {data}\nwrote {report}")
