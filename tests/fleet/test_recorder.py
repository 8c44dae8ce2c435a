"""Recording without a kernel: QEMU and gcc are played by small programs of the tests."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from fleet.recorder.initramfs import archive
from fleet.recorder.record import Recorder, RecorderError
from kernelmodel.script import _ONLY_HUGE, _OPERATIONS

PLAYER = Path(__file__).parents[2] / "fleet" / "recorder" / "player"
SCRIPT = "open d\nkexec\nopen d\n"

#: Does as QEMU would: the trace and the kernel's words go where -serial says.
EMULATOR = """#!{python}
import os, sys, time
ports = [sys.argv[i + 1].removeprefix("file:") for i, a in enumerate(sys.argv) if a == "-serial"]
assert open(sys.argv[sys.argv.index("-initrd") + 1], "rb").read(6) == b"070701"
open(ports[0], "w").write(os.environ["SAYS"])
open(ports[1], "w").write(os.environ["TRACE"])
time.sleep(float(os.environ.get("TAKES", "0")))
sys.exit(int(os.environ.get("EXIT", "0")))
"""
COMPILER = """#!{python}
import os, sys
if os.environ.get("COMPILES") == "no":
    sys.exit("cannot find -lc")
open(sys.argv[sys.argv.index("-o") + 1], "w").write("a program")
"""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel image, as far as its header tells, and programs that pretend to run it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"qemu-system-x86_64": EMULATOR, "gcc": COMPILER}.items():
        (programs / name).write_text(text.format(python=sys.executable))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("SAYS", "Linux\r\n")
    monkeypatch.setenv("TRACE", "T 1 open ok\r\nT end 1\r\nT 3 open ok\r\nT end 2\r\n")
    image = tmp_path / "bzImage"
    image.write_bytes(bytes(0x202) + b"HdrS" + bytes(100))
    return image


def test_a_trace_is_what_comes_out_of_the_second_port(kernel: Path) -> None:
    with Recorder(kernel) as recorder:
        recording = recorder.record(SCRIPT)
    assert recording.trace == ("T 1 open ok", "T end 1", "T 3 open ok", "T end 2")
    assert (recording.ended_by, recording.console) == ("", "Linux\n")


def test_a_panic_or_a_refused_reboot_ends_a_trace(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACE", "T 1 open ok\nT end 1\n")
    monkeypatch.setenv("SAYS", "[ 1.0] Kernel panic - not syncing: no\n[ 1.1] more\n")
    with Recorder(kernel) as recorder:
        recording = recorder.record(SCRIPT)
        assert recording.ended_by == "Kernel panic - not syncing: no"
        monkeypatch.setenv("SAYS", "")
        monkeypatch.setenv("TRACE", "T 1 open ok\nT end 1\n# reboot refused: EBUSY\n")
        recording = recorder.record(SCRIPT)
    assert recording.ended_by == "reboot refused: EBUSY"
    assert recording.trace == ("T 1 open ok", "T end 1")


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"TRACE": "T 1 open ok\n", "SAYS": "so long\n"}, r"stopped after 1 lines[^$]*so long"),
        ({"EXIT": "1"}, r"QEMU failed"),
        ({"TAKES": "60"}, r"its time was over after 4 lines"),
    ],
    ids=["ends early", "fails", "hangs"],
)
def test_a_machine_that_does_not_play_to_the_end_is_an_error_with_its_last_words(
    kernel: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    complaint: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    timeout = 0.2 if "TAKES" in environment else 60
    with Recorder(kernel, timeout) as recorder, pytest.raises(RecorderError, match=complaint):
        recorder.record(SCRIPT)


def test_missing_programs_are_named_with_their_packages(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RecorderError, match=r"qemu-system-x86\), gcc \(Debian package gcc\)"):
        Recorder(kernel)


def test_what_is_no_kernel_and_what_does_not_compile_is_said(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.with_name("text").write_text("no kernel")
    for path in (kernel.with_name("nowhere"), kernel.with_name("text")):
        with pytest.raises(RecorderError, match=rf"{path.name}: no kernel image"):
            Recorder(path)
    monkeypatch.setenv("COMPILES", "no")
    with pytest.raises(RecorderError, match=r"libc6-dev[^$]*cannot find -lc"), Recorder(kernel):
        pass


def test_an_archive_lists_directories_before_files_and_ends_with_a_trailer() -> None:
    data = archive({"init": b"12345", "a/b": b""}, ("a",))
    names, at = [], 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        body = -(-(at + 110 + name_size) // 4) * 4
        names.append((name, oct(fields[1]), data[body : body + size]))
        at = -(-(body + size) // 4) * 4
    assert names == [
        ("a", "0o40755", b""),
        ("init", "0o100755", b"12345"),
        ("a/b", "0o100755", b""),
        ("TRAILER!!!", "0o0", b""),
    ]


def test_the_player_has_every_operation_of_scripts() -> None:
    tables = {
        name: set(re.findall(r'^\t\{ "(\w+)", op_', (PLAYER / name).read_text(), re.MULTILINE))
        for name in ("operations.c", "huge.c")
    }
    assert tables["operations.c"] == set(_OPERATIONS) - _ONLY_HUGE
    assert tables["huge.c"] == _ONLY_HUGE | {"truncate", "fallocate"}


def test_the_command_line_records_and_compares(kernel: Path, tmp_path: Path) -> None:
    script = tmp_path / "a.scn"
    script.write_text(SCRIPT)
    log = tmp_path / "log"
    run = CliRunner().invoke
    done = run(app, ["record", str(script), "--kernel", str(kernel), "--console-log", str(log)])
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "T end 2")
    assert log.read_text() == "Linux\n"
    done = run(
        app, ["record", str(script), "--kernel", str(kernel), "--console-log", str(tmp_path)]
    )
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (2, "T end 2")
    assert f"cannot write {tmp_path}" in done.stderr
    done = run(app, ["conform", str(script), "--against", str(kernel)])
    assert (done.exit_code, done.stdout.splitlines()) == (
        0,
        ["a: the same 4 lines", "1 scripts, 0 of them different"],
    )


def test_the_command_line_shrinks_and_keeps_what_differs(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "a.scn"
    script.write_text("open d\nopen e\nnull n\n")
    monkeypatch.setenv("TRACE", "T 1 open ENODEV\nT end 1\n")
    done = CliRunner().invoke(
        app,
        f"conform {script} --against {kernel} --shrink 9 --keep {tmp_path / 'kept'}".split(),
    )
    assert done.exit_code == 4
    assert "'open d': the kernel says 'T 1 open ENODEV', the model 'T 1 open ok'" in done.stdout
    assert (tmp_path / "kept" / "a.trace").read_text() == os.environ["TRACE"]
    assert len((tmp_path / "kept" / "a.scn").read_text().splitlines()) == 1


def test_bad_scripts_and_kernels_are_exit_code_2(kernel: Path, tmp_path: Path) -> None:
    script = tmp_path / "a.scn"
    script.write_text("fly d\n")
    run = CliRunner().invoke
    done = run(app, ["record", str(script), "--kernel", str(kernel)])
    assert (done.exit_code, "a.scn:1: 'fly' is no operation" in done.stderr) == (2, True)
    done = run(app, ["conform", "--random", "1", "--against", str(script)])
    assert (done.exit_code, "no kernel image" in done.stderr) == (2, True)
    assert run(app, ["conform"]).exit_code == 2
