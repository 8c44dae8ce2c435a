"""`lufleet conform` prints the trace alone, and names every fault of a script."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from kernelmodel.errors import ModelBug

TRACES = Path(__file__).parents[1] / "conformance" / "traces"


@pytest.mark.parametrize("name", ["4", "900", "h4"])
def test_the_trace_is_printed_byte_for_byte(name: str) -> None:
    result = CliRunner().invoke(app, ["conform", str(TRACES / f"{name}.scn")])
    assert result.exit_code == 0
    assert result.stdout_bytes == (TRACES / f"{name}.trace").read_bytes()


def test_every_fault_is_listed_and_nothing_is_run(tmp_path: Path) -> None:
    script = tmp_path / "s.scn"
    script.write_text("open d\nfly d\nseek d x\n")
    result = CliRunner().invoke(app, ["conform", str(script)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{script}:2: 'fly' is no operation; there are open, null," in result.stderr
    assert f"{script}:3: 'x' is no number; 4096 and 0x1000 are" in result.stderr


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_what_cannot_be_read_is_bad_input(content: bytes | None, tmp_path: Path) -> None:
    script = tmp_path / "s.scn"
    if content is not None:
        script.write_bytes(content)
    result = CliRunner().invoke(app, ["conform", str(script)])
    assert result.exit_code == 2
    assert f"{script}: cannot be read" in result.stderr


@pytest.mark.parametrize("option", [(), ("--check",)])
def test_a_bug_of_the_model_ends_with_4(
    option: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ModelBug("two pages at once")

    monkeypatch.setattr("kernelmodel.syscalls.Task.open", broken)
    result = CliRunner().invoke(app, ["conform", *option, str(TRACES / "4.scn")])
    assert result.exit_code == 4
    assert "two pages at once" in result.stderr
    assert f"lufleet conform {TRACES / '4.scn'}" in result.stderr
