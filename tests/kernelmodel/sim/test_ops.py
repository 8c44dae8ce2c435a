"""Promise: whatever the model charges has a cost row."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from kernelmodel.sim.cost import CostModel

ROOT = Path(__file__).parents[3]


def charged_ops() -> Iterator[tuple[str, str]]:
    """(where, op) for every text in what a charge is of: `"a" if x else "b"` has two."""
    for folder in ("kernelmodel", "node"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                match node:
                    case (
                        ast.Call(
                            func=ast.Attribute(attr="charge" | "charge_each")
                            | ast.Name(id="charge"),
                            args=[ops, *_],
                        )
                        | ast.Call(
                            func=ast.Attribute(attr="charge_locked"),
                            args=[_, ops, *_],
                        )
                    ):
                        for part in ast.walk(ops):
                            match part:
                                case ast.Constant(value=str(op)):
                                    yield f"{path.relative_to(ROOT)}:{node.lineno}", op


def test_every_op_that_is_charged_has_a_row() -> None:
    rows = CostModel.load().rows
    assert [f"{where}: {op}" for where, op in charged_ops() if op not in rows] == []


def test_every_row_is_charged_somewhere() -> None:
    """A row that nobody charges would only look like a part of the model."""
    assert sorted(set(CostModel.load().rows) - {op for _, op in charged_ops()}) == []
