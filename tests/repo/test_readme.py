"""README shows what really runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def first_run() -> list[str]:
    """The output that README shows, less what differs from machine to machine."""
    found = re.search(r"It ends like this:\n\n```text\n(.*?)\n```", README, re.DOTALL)
    assert found, "README has lost its first run"
    return [
        line
        for line in found[1].splitlines()
        if line and not line.startswith(("real time", "wrote "))
    ]


@pytest.mark.timeout(120)
def test_the_first_run_in_readme_is_what_the_example_prints(tmp_path: Path) -> None:
    """README's text of a first run, its digest included, is the default example's real output."""
    command = [
        str(Path(sys.executable).with_name("lufleet")),
        "run",
        "examples/rolling-update.toml",
    ]
    done = subprocess.run(
        [*command, "--backend", "local", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    missing = [line for line in first_run() if line.rstrip() not in printed]
    assert not missing, "README's first run is out of date"


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_readme_links_to_what_exists(target: str) -> None:
    """No link of README leads nowhere."""
    assert (ROOT / target).exists()
