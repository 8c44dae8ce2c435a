"""One HTML file about one comparison of designs: the table, and plots over VMs and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from fleet.charts.designs import Line, line_chart
from fleet.designs.compare import Compared, Curve, about
from fleet.designs.host import release_of
from fleet.designs.measure import Measured
from fleet.designs.table import caveats, sections
from fleet.html import Markup, code, paragraph, table, text
from fleet.report import own_version, page_style
from fleet.units import show_size

__all__ = ["write_designs_report"]

_Figure = tuple[str, str, Callable[[Measured], float], Callable[[float], str], bool]
#: Name, title, figure, how it is written, whether its axis is logarithmic.
_FIGURES: Final[tuple[_Figure, ...]] = (
    ("blackout", "blackout", lambda m: m.blackout_seconds, lambda s: f"{s:g} s", False),
    (
        "preserve",
        "preserve and PREPARE",
        lambda m: (m.preserve_seconds + m.prepare_seconds) * 1e3,
        lambda ms: f"{ms:g} ms",
        False,
    ),
    (
        "shared",
        "shared state",
        lambda m: float(m.shared_bytes),
        lambda size: show_size(round(size)),
        True,
    ),
)


def write_designs_report(
    title: str, found: Sequence[Compared], plots: Mapping[str, list[Curve]], path: Path
) -> None:
    """Write the report to `path`, through a temporary file."""
    template = Template((files("fleet") / "templates" / "designs.html").read_text("utf-8"))
    page = template.substitute(
        version=text(own_version()),
        style=page_style(),
        title=text(f"Designs for hugetlb: {title}"),
        name=text("Designs for preserving hugetlb's shared state"),
        subtitle=text(f"{title} · simulated, all times virtual"),
        tables=Markup("".join([*_tables(found), *(paragraph(c, "note") for c in caveats(found))])),
        columns=len(found) + 1,
        plots=Markup("".join(_plots(found, plots))),
        designs=_designs(found),
        footer=text(f"lufleet {own_version()}"),
    )
    part = path.with_name(path.name + ".part")
    part.write_text(page, "utf-8")
    part.replace(path)


def _tables(found: Sequence[Compared]) -> list[str]:
    names = ["", *(Markup(text(one.name).replace("-", "-<wbr>")) for one in found)]
    numeric = range(1, len(names))
    return [
        table(
            section.title,
            names,
            [[_indented(label), *(_cell(cell) for cell in cells)] for label, cells in section.rows],
            numeric=numeric,
        )
        for section in sections(found)
    ]


def _indented(label: str) -> str:
    """A row that is part of the one above stands in from the margin, on a page too."""
    inner = label.lstrip()
    return "\N{NO-BREAK SPACE}" * 2 * (len(label) - len(inner)) + inner


def _cell(cell: str) -> Markup:
    return Markup("<br>".join(text(line) for line in cell.split("\n")))


def _plots(found: Sequence[Compared], plots: Mapping[str, list[Curve]]) -> list[str]:
    parts = []
    for what, across, show_x in (
        ("vms", "VMs", lambda n: f"{n:,.0f}"),
        ("memory", "memory", lambda size: show_size(round(size))),
    ):
        for name, up, figure, show_y, logarithmic in _FIGURES:
            lines = [
                Line(one.name, tuple((float(at), figure(m)) for at, m in curve.points))
                for one in found
                for curve in plots.get(one.name, ())
                if curve.what == what
            ]
            chart = line_chart(
                f"{name}-{what}",
                (across, up),
                lines,
                show_x,
                show_y,
                logarithmic=logarithmic,
            )
            parts.append(f"<h3>{text(up.capitalize())} over {text(across)}</h3>")
            parts.append(f'<div class="wide" tabindex="0" role="group">{chart}</div>')
    return parts


def _designs(found: Sequence[Compared]) -> Markup:
    rows = []
    for one in found:
        design = about(one.name)
        rows.append(
            [
                code(one.name),
                design.source,
                f"LUO {design.luo}",
                code(release_of(one.name).name),
                "; ".join(design.callbacks),
            ]
        )
    columns = ["design", "whose, and when", "stands on", "release", "callbacks to be added"]
    return Markup(
        table("Where they come from", columns, rows)
        + paragraph(
            "All run on the memory management and the KHO of 7.3.4 and are charged alike for the"
            " same work. Failures and ten updates in a row were played on a host of the same"
            " proportions with 256 GiB.",
            "note",
        )
    )
