"""Pieces of HTML for a report: escaped text, tables, lists. Nothing here knows what a fleet is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = ["Markup", "badge", "code", "facts", "legend", "paragraph", "table", "text"]


class Markup(str):
    """Text that is HTML already; every other string is escaped before it reaches a page."""

    __slots__ = ()


def text(value: object) -> Markup:
    """`value` as HTML: markup as it stands, anything else escaped."""
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


def code(value: object) -> Markup:
    """`value` in the fixed-width font."""
    return Markup(f"<code>{text(value)}</code>")


def badge(value: str, style: str) -> Markup:
    """A word on a coloured ground; the word, not the colour, carries the meaning."""
    return Markup(f'<span class="badge {style}" style="margin:0">{text(value)}</span>')


def paragraph(value: object, style: str = "") -> Markup:
    """A paragraph."""
    opening = f'<p class="{style}">' if style else "<p>"
    return Markup(f"{opening}{text(value)}</p>")


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numeric: Sequence[int] = (),
) -> Markup:
    """A table with a caption; the first cell of a row is its header.

    `numeric` are the indices of the columns that are aligned to the right.
    """

    def cell(tag: str, index: int, value: object, scope: str = "") -> str:
        style = ' class="num"' if index in numeric else ""
        return f"<{tag}{style}{scope}>{text(value)}</{tag}>"

    head = "".join(cell("th", i, name, ' scope="col"') for i, name in enumerate(columns))
    body = "".join(
        "<tr>"
        + cell("th", 0, row[0], ' scope="row"')
        + "".join(cell("td", i, value) for i, value in enumerate(row[1:], start=1))
        + "</tr>"
        for row in rows
    )
    return Markup(
        f'<div class="wide" tabindex="0" role="group" aria-label="{escape(caption)}"><table>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(rows: Mapping[str, object]) -> Markup:
    """Names and what they stand for, in two columns."""
    pairs = (f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows.items())
    return Markup(f'<dl class="facts">{"".join(pairs)}</dl>')


def legend(entries: Mapping[str, str]) -> Markup:
    """What colours stand for: CSS colour variable -> text."""
    items = (
        f'<li><span class="swatch" style="background:var(--{colour})"></span>{text(name)}</li>'
        for colour, name in entries.items()
    )
    return Markup(f'<ul class="legend">{"".join(items)}</ul>')
