"""The tables of the rolling-update example are those that their script writes."""

from __future__ import annotations

import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples" / "fleet"


def test_the_tables_are_as_generated() -> None:
    tables = runpy.run_path(str(FOLDER / "generate.py"))["tables"]()
    assert set(tables) == {"hosts.csv", "vms.csv"}
    for name, text in tables.items():
        assert (FOLDER / name).read_text("utf-8") == text, "run examples/fleet/generate.py"


def test_they_say_that_the_proportions_are_invented() -> None:
    for name in ("hosts.csv", "vms.csv"):
        assert "the proportions are ours" in (FOLDER / name).read_text("utf-8")
