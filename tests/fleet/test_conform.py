"""`lufleet conform` prints traces alone, compares them, and names every fault of a script."""

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


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file or directory"), (b"\xff\xfe", "'utf-8' codec can't")]
)
def test_what_cannot_be_read_is_bad_input(content: bytes | None, why: str, tmp_path: Path) -> None:
    script = tmp_path / "s.scn"
    if content is not None:
        script.write_bytes(content)
    result = CliRunner().invoke(app, ["conform", str(script)])
    assert result.exit_code == 2
    assert f"{script}: cannot be read: {why}" in result.stderr


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


def test_several_traces_stand_under_headings() -> None:
    paths = [TRACES / "903.scn", TRACES / "905.scn"]
    result = CliRunner().invoke(app, ["conform", *map(str, paths)])
    expected = "".join(
        f"# {path}\n{path.with_suffix('.trace').read_text(encoding='utf-8')}" for path in paths
    )
    assert (result.exit_code, result.stdout, result.stderr) == (0, expected, "")


@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
def test_why_a_trace_ends_is_said_beside_it(fresh: tuple[str, ...]) -> None:
    path = TRACES / "panic-51.scn"
    result = CliRunner().invoke(app, ["conform", *fresh, str(path)])
    assert result.exit_code == 0
    assert result.stdout == path.with_suffix(".trace").read_text()
    assert f"{path}: the trace ends here: panic: luo: cannot read the sessions" in result.stderr


def recorded_copy(folder: Path, name: str) -> Path:
    for suffix in (".scn", ".trace"):
        (folder / f"{name}{suffix}").write_bytes((TRACES / f"{name}{suffix}").read_bytes())
    return folder / f"{name}.scn"


def test_scripts_are_compared_with_the_recordings_beside_them(tmp_path: Path) -> None:
    good, bad = recorded_copy(tmp_path, "903"), recorded_copy(tmp_path, "905")
    result = CliRunner().invoke(app, ["conform", "--check", str(good), str(bad)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "2 scripts, 0 of them not as recorded"
    trace = bad.with_suffix(".trace")
    trace.write_text(trace.read_text().replace("T 3 memfd ok", "T 3 memfd EMFILE"))
    result = CliRunner().invoke(app, ["conform", "--check", str(good), str(bad)])
    assert result.exit_code == 4
    assert result.stdout.splitlines() == [
        f"{good}: as recorded, 26 lines",
        f"{bad}: 'memfd m 4096 s': the kernel says 'T 3 memfd EMFILE', the model 'T 3 memfd ok'",
        "2 scripts, 1 of them not as recorded",
    ]


def test_every_fault_of_every_script_is_listed_before_any_is_played(tmp_path: Path) -> None:
    bare, wrong = tmp_path / "bare.scn", tmp_path / "wrong.scn"
    bare.write_text("open d\n")
    wrong.write_text("fly d\n")
    scripts = [str(TRACES / "903.scn"), str(bare), str(wrong)]
    result = CliRunner().invoke(app, ["conform", "--check", *scripts])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{bare.with_suffix('.trace')}: cannot be read" in result.stderr
    assert f"{wrong}:1: 'fly' is no operation" in result.stderr


def test_handovers_of_scripts_with_one_name_would_clash(tmp_path: Path) -> None:
    scripts = [tmp_path / folder / "s.scn" for folder in ("a", "b")]
    for script in scripts:
        script.parent.mkdir()
        script.write_text("open d\n")
    command = ["conform", "--keep-handover", str(tmp_path / "kept"), *map(str, scripts)]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{scripts[1]}: is called like {scripts[0]}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no script"),
        (["--fresh", "--random", "2"], "for scripts on the model alone"),
        (["--check", "--keep", "d", "s.scn"], "for scripts on the model alone"),
        (["--handover", "h.json", "a.scn", "b.scn"], "--handover is of one script"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["conform", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in " ".join(result.stderr.replace("│", " ").split())
