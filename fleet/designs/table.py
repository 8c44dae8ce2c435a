"""The comparison as rows: a row for each question, a column for each design."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleet.designs.compare import Compared, about
from fleet.designs.failures import CHAIN
from fleet.units import counted, show_size
from node.api import BLACKOUT_PHASES

__all__ = ["Section", "caveats", "print_tables", "sections"]

_LABEL, _CELL = 28, 13


@dataclass(frozen=True, slots=True)
class Section:
    """Rows under a heading: (question, an answer for each design)."""

    title: str
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def sections(found: Sequence[Compared]) -> list[Section]:
    """Every row that there is."""

    def row(label: str, answer: Callable[[Compared], str]) -> tuple[str, tuple[str, ...]]:
        return label, tuple(answer(one) for one in found)

    def after_boot(answer: Callable[[Compared], str]) -> Callable[[Compared], str]:
        return lambda one: "never" if one.update.ended else answer(one)

    def phase(name: str) -> Callable[[Compared], str]:
        return after_boot(lambda one: _share(one, name))

    return [
        Section(
            "what it is",
            (
                row("LUO", lambda one: about(one.name).luo),
                row("callbacks to be added", lambda one: str(len(about(one.name).callbacks))),
                row("1 GiB guest_memfd", lambda one: _yes(one.update.guest_memfd_works)),
                row("VMs it cannot preserve", lambda one: _none(sum(one.update.refused.values()))),
                row("VMs lost", _vms_lost),
            ),
        ),
        Section(
            "what it writes",
            (
                row("shared state", lambda one: show_size(one.update.shared_bytes)),
                row("  in pages", lambda one: show_size(one.update.shared_memory)),
                row("files, in pages", lambda one: show_size(one.update.file_memory)),
            ),
        ),
        Section(
            "what it takes",
            (
                row("preserve, in parallel", lambda one: _seconds(one.update.preserve_seconds)),
                row("PREPARE", lambda one: _seconds(one.update.prepare_seconds)),
                row("pools frozen", lambda one: _seconds(one.update.restricted_seconds)),
                row("blackout", after_boot(lambda one: _seconds(one.update.blackout_seconds))),
                *(row(f"  {name}", phase(name)) for name in BLACKOUT_PHASES),
            ),
        ),
        Section(
            "pools after the update",
            (
                row("too many (few), at boot", after_boot(lambda o: _pages(o.update.boot_excess))),
                row("the same, finished", after_boot(lambda o: _pages(o.update.final_excess))),
                row("moved to another node", after_boot(lambda o: _pages(o.update.moved))),
                row("grown at run time: kept", lambda o: _kept(o.failures.resized)),
                row("shrunk at run time: kept", lambda o: _kept(o.failures.shrunk)),
                row(f"{CHAIN} updates: drift", _drift),
            ),
        ),
        Section(
            "what failures leave",
            (
                row("cancel", lambda one: _none(one.failures.cancel_leaks)),
                row("a file fails: held up", lambda one: one.failures.file_fails or "–"),
                row("a freeze fails", lambda one: one.failures.freeze_fails or "–"),
                row("session not retrieved", lambda one: _lost(one, one.failures.never_retrieved)),
                row("file not retrieved", lambda o: _lost(o, o.failures.file_not_retrieved)),
                row("retrieve fails", lambda one: _lost(one, one.failures.retrieve_failed)),
            ),
        ),
    ]


def _vms_lost(one: Compared) -> str:
    return "all" if one.update.ended else _none(sum(one.update.lost.values()))


def _yes(value: bool | None) -> str:
    return "–" if value is None else "yes" if value else "no"


def _none(n: int) -> str:
    return f"{n:,}" if n else "–"


def _seconds(seconds: float) -> str:
    if not seconds:
        return "–"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _share(one: Compared, name: str) -> str:
    seconds = one.update.phases.get(name, 0.0)
    share = seconds / one.update.blackout_seconds if one.update.blackout_seconds else 0.0
    return f"{_seconds(seconds)} {share:.0%}" if seconds else "–"


def _pages(pages: Mapping[str, int]) -> str:
    return "\n".join(f"{n:+,}×{label}" for label, n in pages.items()) or "–"


def _kept(resized: tuple[int, int]) -> str:
    return f"{resized[1]} of {resized[0]}" if resized[0] else "–"


def _drift(one: Compared) -> str:
    found = one.failures
    if found.chain < CHAIN:
        return f"ends after {found.chain}"
    return _pages(found.drift) if found.drift else "–"


def _lost(one: Compared, n: int) -> str:
    return f"{n} of {one.failures.vm_pages} lost" if n else "–"


def print_tables(found: Sequence[Compared], title: str, width: int) -> RenderableType:
    """One table, or as many as the width asks for; and what LUO must offer to each."""
    fit = max(1, (width - _LABEL) // (_CELL + 3))
    shown: list[RenderableType] = [Text(title)]
    for at in range(0, len(found), fit):
        part = found[at : at + fit]
        table = Table()
        table.add_column("", no_wrap=True)
        for one in part:
            heading = "-\n".join(one.name.rsplit("-", 1))
            table.add_column(heading, justify="right", max_width=_CELL)
        for section in sections(part):
            table.add_section()
            table.add_row(Text(section.title, style="bold"))
            for label, cells in section.rows:
                table.add_row(label, *cells)
        shown.append(table)
    shown.append(Text("\n".join(_notes(found))))
    return Group(*shown)


def _notes(found: Sequence[Compared]) -> list[str]:
    notes = []
    for one in found:
        design = about(one.name)
        needs = "; ".join(design.callbacks) or "nothing"
        notes.append(f"{one.name} ({design.source}): beyond LUO {design.luo}, {needs}")
    return notes + caveats(found)


def caveats(found: Sequence[Compared]) -> list[str]:
    """What makes figures hard to compare, a sentence for each design that it is true of."""
    said = []
    for one in found:
        if one.update.ended:
            said.append(f"{one.name}: the next kernel is of no use: {one.update.ended}")
        refused = sum(one.update.refused.values())
        if refused:
            why = ", ".join(one.update.refused)
            left = counted(one.update.vms - refused, "VM")
            said.append(f"{one.name}: figures are of {left} only, {refused} are refused with {why}")
    return said
