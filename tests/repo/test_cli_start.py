"""`lufleet --help` answers at once, because it loads nothing that a command may need."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

LUFLEET = Path(sys.executable).parent / "lufleet"
HEAVY = {"ray", "grpc", "numpy", "duckdb", "matplotlib", "prometheus_client", "tree_sitter"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from fleet.cli import main\n"
        "sys.argv = ['lufleet', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as done:\n"
        "    assert not done.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "rollout" in done.stdout
    assert not set(done.stdout.splitlines()[-1].split()) & HEAVY


def test_help_takes_less_than_three_tenths_of_a_second() -> None:
    """Of processor time, the best of five: other work on the machine must not fail it."""
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([LUFLEET, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(taken) < 0.3, taken


def test_the_version_is_that_of_the_distribution() -> None:
    done = subprocess.run([LUFLEET, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "lufleet 0.1.0"
