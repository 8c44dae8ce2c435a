"""A corruption is named on the command line, and shows in the trace beside what to expect."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.bad_input import BadInput
from fleet.cli import app
from fleet.corruptions_command import corrupted
from kernelmodel.corruptions.catalogue import CORRUPTIONS

SCRIPT = """open d
create d s one
memfd m 8192
preserve s m 1
kexec
open d
retrieve d s one
fetch s m 1
kexec
open d
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "one.scn"
    path.write_text(SCRIPT)
    return str(path)


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_corruption_shows_in_the_trace_and_what_to_expect_beside_it(
    script: str, fresh: list[str]
) -> None:
    result = CliRunner().invoke(app, ["conform", *fresh, "--corrupt", "key-missing-folio", script])
    assert result.exit_code == 0
    assert "T 8 fetch EIO" in result.stdout.splitlines()
    assert "file refused (EIO)" in result.stderr
    assert "kho_restore_page()" in result.stderr


def test_a_later_boot_can_be_named(script: str) -> None:
    result = CliRunner().invoke(app, ["conform", "--corrupt", "luo-compatible@3", script])
    assert result.stdout.splitlines()[-1] == "T end 2"
    assert "panic: luo: incompatible handover" in result.stderr


def test_what_is_not_there_cannot_be_corrupted(script: str) -> None:
    result = CliRunner().invoke(app, ["conform", "--corrupt", "session-block-short", script])
    assert result.exit_code == 2
    assert "1 blocks of sessions, not 2" in result.stderr


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ("fdt-magick", ["no corruption 'fdt-magick'", "fdt-magic is one"]),
        ("fdt-magic@1", ["'1' is no boot"]),
        ("nothing@x", ["no corruption 'nothing'", "'x' is no boot"]),
        ("fdt-magic@4", ["no jump into boot 4"]),
    ],
)
def test_bad_requests_are_refused_with_all_that_is_wrong(asked: str, wrong: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        corrupted(SCRIPT, Path("one.scn"), asked)
    said = " ".join(str(fault) for fault in caught.value.faults)
    assert all(part in said for part in wrong)


def test_the_list_has_every_label_with_its_outcome() -> None:
    lines = CliRunner().invoke(app, ["conform", "--list-corruptions"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(CORRUPTIONS)
    assert all(
        corruption.outcome.value in line
        for line, corruption in zip(lines, CORRUPTIONS.values(), strict=True)
    )
