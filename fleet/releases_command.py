"""`lufleet releases`: the catalogue as a table, and what a step or a path through it does.

Names that are not known, and mistakes in the file with a user's own releases, are told all at once
and end with 2; a path that is not live is an answer like another.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleet.bad_input import BadInput, did_you_mean
from fleet.exit_code import ExitCode
from fleet.own_releases import load_releases
from fleet.units import counted
from fleet.upgrade_path import Step, best_path, cold_steps, judge, judge_path
from kernelmodel.releases import Release, catalogue_with
from node.api import Backing

__all__ = ["ReleasesOptions", "releases"]


class ReleasesOptions(Struct, frozen=True):
    """The options of `lufleet releases`; at most one of `path` and `at` is given."""

    file: Path | None = None
    path: tuple[str, ...] = ()
    at: str = ""
    to: str = ""
    vms: tuple[str, ...] = (Backing.MEMFD.value,)
    json: bool = False


def releases(options: ReleasesOptions, console: Console, errors: Console) -> ExitCode:
    """Show the catalogue, or the steps that were asked for."""
    try:
        known = catalogue_with(load_releases(options.file) if options.file else ())
    except BadInput as bad:
        errors.print(Text(str(bad)))
        return ExitCode.BAD_INPUT
    if wrong := _unknown(options, known):
        errors.print(Text("\n".join(wrong)))
        return ExitCode.BAD_INPUT
    if not options.path and not options.at:
        shown: list[object] = [asdict(one) | {"title": one.title} for one in known.values()]
        _print(console, shown if options.json else _catalogue(list(known.values())))
        return ExitCode.DONE
    backings = [Backing(name) for name in options.vms]
    if options.path:
        steps = judge_path(options.path, known, backings)
    elif options.to:
        steps = best_path(options.at, options.to, known, backings)
    else:
        others = [to for to in known.values() if to.name != options.at]
        steps = [judge(known[options.at], to, backings) for to in others]
    is_path = bool(options.path or options.to)
    if options.json:
        _print(console, _as_json(steps, options.vms, is_path=is_path))
    else:
        parts = [_table(steps, is_path=is_path)] if steps else []
        _print(console, Group(*parts, Text(_conclusion(steps, is_path=is_path))))
    return ExitCode.DONE


def _unknown(options: ReleasesOptions, known: Mapping[str, Release]) -> list[str]:
    """What is wrong with the names that were given."""
    wrong = [
        f'{option}: there is no release "{name}", {did_you_mean(name, known, noun="releases")}'
        for option, names in (
            ("--path", options.path),
            ("--from", (options.at,) if options.at else ()),
            ("--to", (options.to,) if options.to else ()),
        )
        for name in dict.fromkeys(names)
        if name not in known
    ]
    if len(options.path) == 1:
        wrong.append("--path: one release is no path, name two or more")
    backings = [backing.value for backing in Backing]
    wrong += [
        f'--vms: "{name}" is no backing, {did_you_mean(name, backings, noun="backings")}'
        for name in dict.fromkeys(options.vms)
        if name not in backings
    ]
    return wrong


def _print(console: Console, what: RenderableType | list[object] | dict[str, object]) -> None:
    if isinstance(what, list | dict):
        console.out(json.dumps(what, indent=1, ensure_ascii=False), highlight=False)
    else:
        console.print(what)


def _catalogue(known: Collection[Release]) -> RenderableType:
    """A row for each release; what is no released kernel is said in a line of its own."""
    table = Table(title="Kernel releases and what they call their formats", title_justify="left")
    for name in ("release", "KHO", "LUO", "memfd", "proposed", "status"):
        table.add_column(name, no_wrap=True)
    others = [one for one in known if one.hugetlb_design not in {None, "flb-counts"}]
    for one in known:
        if one in others:
            continue
        beyond = (one.hugemfd, one.hugetlb, one.kvm_vm, one.guest_memfd, one.guest_hugetlb)
        proposed = "\n".join(filter(None, beyond))
        parts = (part or "–" for part in (one.kho, one.luo, one.memfd, proposed))
        table.add_row(one.name, *parts, _status(one))
    remarks = [f"{one.name}: {one.remark}" for one in known if one.remark and one not in others]
    shown: list[RenderableType] = [table, Text("\n".join(remarks))]
    if others:
        shown.append(_other_designs(others))
    return Group(*shown)


def _other_designs(known: Collection[Release]) -> RenderableType:
    """Releases that differ in how hugetlb's shared state is kept; `lufleet designs` compares."""
    title = "7.3.4+guest-memfd with another design for hugetlb (lufleet designs)"
    table = Table(title=title, title_justify="left")
    for name in ("release", "LUO", "shared state"):
        table.add_column(name, no_wrap=True)
    for one in known:
        luo = f"{one.luo}, v4" if one.luo_design == "v4" else one.luo
        table.add_row(one.name, luo, one.hugetlb)
    return table


def _status(release: Release) -> str:
    if release.based_on:
        return "own"
    return "proposal" if release.proposal else "released"


def _table(steps: Sequence[Step], *, is_path: bool) -> Table:
    title = "Step by step" if is_path else f"From {steps[0].at}"
    table = Table(title=title, title_justify="left")
    for name in (*(("from",) if is_path else ()), "to", "verdict"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold")
    for step in steps:
        verdict = Text(step.verdict, style="green" if step.live else "red")
        table.add_row(*((step.at,) if is_path else ()), step.to, verdict, step.reason)
    return table


def _conclusion(steps: Sequence[Step], *, is_path: bool) -> str:
    """What to make of it."""
    cold = cold_steps(steps)
    if not is_path:
        return f"{counted(len(steps) - cold, 'release')} can be reached live"
    if not steps:
        return "nothing to do: that is what runs"
    if not cold:
        return "live all the way"
    are = "is" if cold == 1 else "are"
    return (
        f"{cold} of {counted(len(steps), 'step')} {are} not live: "
        "take a cold reboot there, which restarts the VMs"
    )


def _as_json(steps: Sequence[Step], vms: Sequence[str], *, is_path: bool) -> dict[str, object]:
    listed = [
        {"from": step.at, "to": step.to, "verdict": step.verdict.value, "reason": step.reason}
        for step in steps
    ]
    total = {"cold_steps": cold_steps(steps)} if is_path else {}
    return {"vms": list(vms), **total, "steps": listed}
