"""Tables on a terminal of any width: cells are folded where they do not fit, never cut off."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

__all__ = ["SideBySide", "titled_table"]


def titled_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """An empty table; columns of words stand on the left, those of numbers on the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", overflow="fold")
    return table


class SideBySide:
    """Tables beside each other where the console is wide enough for that, else below each other."""

    def __init__(self, *tables: Table) -> None:
        self._tables = tables

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = sum(console.measure(t, options=options).maximum for t in self._tables)
        gaps = len(self._tables) - 1
        if fitting := [gap for gap in (4, 2) if wide + gap * gaps <= options.max_width]:
            grid = Table.grid(padding=(0, fitting[0]))
            grid.add_row(*self._tables)
            yield grid
        else:
            yield from self._tables
