"""What work costs: from `op` to integer nanoseconds, each row naming where its figures are from.

A row says ``base_ns + units * per_unit_ps / 1000``, rounded to the nearest nanosecond. Units are
what an operation loops over (a folio, a radix key, a MiB), and picoseconds per unit keep 41 ns
and 0.3 ns exact. A row may name a `spread`, a quantile table that turns one uniform draw into
a multiplier, so that boots have tails, and a `stream`, the group that a fault slows as a whole
(`Clock.slow("boot", 4000)`).

The built-in rows are `profiles/default.toml`; `kernelmodel.sim.profile` says how a user's own
measurements override them. ``python -m kernelmodel.sim [PROFILE.toml]`` prints the rows in force.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from types import MappingProxyType, TracebackType
from typing import Final, Self

from kernelmodel.errors import ModelBug
from kernelmodel.sim.cost_rows import KINDS, CostRow, Spread, time_text
from kernelmodel.sim.profile import CostProfileError, format_profile, read_profile

__all__ = [
    "KINDS",
    "CostModel",
    "CostProfileError",
    "CostRow",
    "PlainCosts",
    "Slowdown",
    "Spread",
    "format_profile",
]

#: Costs that are remembered at most.
_MANY: Final = 1 << 14


class CostModel:
    """Rows and spreads, by name; immutable, so the hosts of a run share one."""

    def __init__(self, rows: Mapping[str, CostRow], spreads: Mapping[str, Spread]) -> None:
        self.rows: Mapping[str, CostRow] = MappingProxyType(dict(sorted(rows.items())))
        self.spreads: Mapping[str, Spread] = MappingProxyType(dict(sorted(spreads.items())))
        #: Of the rows without a spread: nearly all.
        self.plain = PlainCosts(
            {op: (row.base_ns, row.per_unit_ps) for op, row in self.rows.items() if not row.spread}
        )
        #: (base_ns, per_unit_ps, spread) of the others.
        self.lucky: Mapping[str, tuple[int, int, Spread]] = {
            op: (row.base_ns, row.per_unit_ps, self.spreads[row.spread])
            for op, row in self.rows.items()
            if row.spread
        }

    @classmethod
    def load(cls, profile_toml: str = "") -> CostModel:
        """The built-in rows with those of the profile `profile_toml` (TOML text) over them.

        Raises:
            CostProfileError: the profile has faults; all of them are listed.
        """
        builtin = _builtin()
        if not profile_toml.strip():
            return builtin
        return cls(*read_profile(profile_toml, builtin.rows, builtin.spreads))

    def cost_ns(self, op: str, units: int = 1) -> int:
        """Nanoseconds for `units` of `op`, without spread."""
        return self.row(op).cost_ns(units)

    def row(self, op: str) -> CostRow:
        """The row of `op`; an op without one is our mistake."""
        try:
            return self.rows[op]
        except KeyError:
            near = get_close_matches(op, self.rows, n=3)
            hint = f"; close: {', '.join(near)}" if near else ""
            raise ModelBug(f"no cost row for {op!r}{hint}") from None

    def ops_slowed_by(self, name: str) -> tuple[str, ...]:
        """The ops that `name` stands for: the op so called, or every op of the stream."""
        if name in self.rows:
            return (name,)
        ops = tuple(op for op, row in self.rows.items() if row.stream == name)
        if not ops:
            raise ModelBug(f"{name!r} is neither an op nor a stream of the cost model")
        return ops

    def digest(self) -> str:
        """32 hexadecimal digits over all that can change a time: not over sources and kinds."""
        rows = [[r.op, r.base_ns, r.per_unit_ps, r.spread, r.stream] for r in self.rows.values()]
        spreads = [[s.name, s.points] for s in self.spreads.values()]
        text = json.dumps(["lufleet cost 1", rows, spreads], separators=(",", ":"))
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def markdown(self) -> str:
        """Two tables, rows and spreads: what work costs, of what kind each figure is, whence."""
        lines = ["| op | base | per unit | unit | kind | spread | source |", "|" + "---|" * 7]
        for row in self.rows.values():
            base, unit = time_text(row.base_ns * 1000), time_text(row.per_unit_ps)
            cells = (f"`{row.op}`", base, unit, row.unit, row.kind, row.spread, row.source)
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "| spread | quantile → multiplier | kind | source |", "|" + "---|" * 4]
        for spread in self.spreads.values():
            lines.append(f"| {spread.name} | {spread.told()} | {spread.kind} | {spread.source} |")
        return "\n".join(lines) + "\n"


class PlainCosts:
    """What the ops cost that always cost the same, worked out when first asked for."""

    __slots__ = ("known", "rows")

    def __init__(self, rows: Mapping[str, tuple[int, int]]) -> None:
        #: (base_ns, per_unit_ps) by op.
        self.rows = rows
        #: Nanoseconds of (op, units) as far as they were asked for; None if op is not of `rows`.
        self.known: dict[tuple[str, int], int | None] = {}

    def ns(self, op: str, units: int) -> int | None:
        """Nanoseconds of `units` of `op`, known from now on; None if it is not of `rows`."""
        if units < 0:
            raise ModelBug(f"{units} units of {op!r}")
        if len(self.known) == _MANY:  # fleets of few kinds of hosts have some hundreds
            self.known.clear()
        ns = None
        if op in self.rows:
            base_ns, per_unit_ps = self.rows[op]
            ns = base_ns + (int(units) * per_unit_ps + 500) // 1000
        self.known[op, units] = ns
        return ns

    def without(self, ops: Collection[str]) -> PlainCosts:
        """The costs of all other ops."""
        return PlainCosts({op: row for op, row in self.rows.items() if op not in ops})


class Slowdown:
    """An installed multiplier; `lift()` removes it, as does the end of its `with` block."""

    __slots__ = ("_remove",)

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove: Callable[[], None] | None = remove

    def lift(self) -> None:
        """Remove the multiplier; further calls do nothing."""
        remove, self._remove = self._remove, None
        if remove is not None:
            remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.lift()


@cache
def _builtin() -> CostModel:
    path = files("kernelmodel.sim") / "profiles" / "default.toml"
    return CostModel(*read_profile(path.read_text("utf-8"), {}, {}))
