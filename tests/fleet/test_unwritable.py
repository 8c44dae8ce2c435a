"""Files that cannot be written end a command with a plain message and the line that goes on."""

from __future__ import annotations

import errno
import io
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import fleet.run
from fleet.cli import app
from fleet.event_store import write_event_store
from fleet.journal import Journal, journal_header
from fleet.standard_output import Output
from fleet.unwritable import CannotWrite
from node.api import HostCall
from tests.fleet.sample_run import make_run
from tests.fleet.test_cli import SCENARIO as TOML
from tests.fleet.toys import SCENARIO, ToyBackend


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fleet.run, "make_backend", lambda _: ToyBackend())
    Path("s.toml").write_text(TOML)
    Path("afile").write_text("mine")


def lufleet(*words: str) -> Result:
    return CliRunner().invoke(app, words)


WRONG = [
    # options              what is said
    ("--out afile", "cannot write afile: File exists; something else is there"),
    ("--out afile/below", "cannot write afile/below: Not a directory; something on the way"),
    ("--out \udcff", "cannot write \\udcff: its name is not UTF-8; choose a place"),
    ("--out /proc/x", "cannot write /proc/x: No such file or directory; choose a place"),
    ("--trace-out .", "cannot write .: Is a directory; choose the name of a file"),
]


@pytest.mark.parametrize("command", ["run", "serve"])
@pytest.mark.parametrize(("options", "said"), WRONG, ids=[options for options, _ in WRONG])
def test_a_place_that_nothing_can_be_written_to_is_told_in_words(
    command: str, options: str, said: str
) -> None:
    if command == "serve" and "trace" in options:
        return
    result = lufleet(command, "s.toml", "--backend", "local", *options.split())
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Errno" not in result.stderr
    assert Path("afile").read_text() == "mine"


def test_a_disk_that_is_full_is_not_a_bug_of_the_simulator() -> None:
    result = lufleet("run", "s.toml", "--out", "o", "--trace-out", "/dev/full")
    assert result.exit_code == 2, result.stderr
    assert "cannot write /dev/full: No space left on device; make room there" in result.stderr
    assert "the simulator" not in result.stderr
    assert "--resume" in result.stderr.splitlines()[-1]


class Log(io.TextIOWrapper):
    """A file on a disk that is full when it comes to `last`."""

    def __init__(self, file: IO[bytes], last: str) -> None:
        super().__init__(file)
        self._last = last

    def write(self, text: str, /) -> int:
        if self._last in text:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


@pytest.mark.parametrize(
    ("last", "advice"),
    [("canary", "--out o --resume"), ("Downtime of a VM", "completed; results are in o")],
)
def test_a_log_that_is_full_is_not_a_bug_of_the_simulator(last: str, advice: str) -> None:
    said = io.StringIO()
    options = fleet.run.RunOptions(Path("s.toml"), out=Path("o"))
    with Path("log").open("wb") as file, Log(file, last) as log:
        consoles = Output(file=log, width=120), Console(file=said, soft_wrap=True)
        assert fleet.run.run(options, *consoles) == 2, said.getvalue()
    assert "cannot write standard output: No space left on device; make room" in said.getvalue()
    assert said.getvalue().strip().endswith(advice)
    assert lufleet("run", "s.toml", "--out", "o", "--resume").exit_code == 0


IMAGE = Path(__file__).parents[1] / "conformance/images/img1.kho.gz"


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--version",
        "run --help",
        "check s.toml",
        f"inspect {IMAGE}",
        f"inspect --pretty {IMAGE}",
        "conform --list-corruptions",
        "conform s.scn",
        "serve s.toml --backend local --grpc 127.0.0.1:0 --metrics 127.0.0.1:0",
    ],
)
def test_a_disk_that_is_full_of_what_is_printed_is_told_in_one_line(words: str) -> None:
    Path("s.scn").write_text("open a\n")
    with Path("/dev/full").open("w") as nowhere:
        command = [sys.executable, "-m", "fleet.cli", *words.split()]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # as a user has it
        result = subprocess.run(
            command, stdout=nowhere, stderr=subprocess.PIPE, text=True, check=False, env=env
        )
    assert result.returncode == 2, result.stderr
    first, *more = result.stderr.splitlines()
    assert first.startswith("cannot write standard output: No space left on device; make room")
    assert [line.split()[0] for line in more] == (["lufleet"] if "serve" in words else [])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_our_letters_gets_them_escaped(encoding: str) -> None:
    Path("s.toml").write_text(TOML.replace("small", "smäll"), "utf-8")
    command = [sys.executable, "-m", "fleet.cli", "check", "s.toml"]
    env = os.environ | {"PYTHONIOENCODING": encoding}
    result = subprocess.run(command, capture_output=True, check=False, env=env)
    assert (result.returncode, result.stderr) == (0, b"")
    said = result.stdout.decode(encoding)
    assert "\\u2192" in said
    assert ("smäll" in said) == (encoding == "latin-1")


def test_designs_are_written_before_standard_output_takes_no_more() -> None:
    command = "designs --memory 16GiB --vms 2 --page-size 2MiB --design ours --out o"
    with Path("/dev/full").open("w") as nowhere:
        words = [sys.executable, "-m", "fleet.cli", *command.split()]
        done = subprocess.run(words, stdout=nowhere, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == 2
    assert {path.name for path in Path("o").iterdir()} == {"designs.json", "report.html"}


def full(journal: Journal) -> None:
    """Leave no room in a journal's file."""
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {pages}")


@pytest.fixture
def _cramped(monkeypatch: pytest.MonkeyPatch) -> None:
    """New journals have no room."""
    create = Journal.create

    def cramped(*args: object, **kwargs: object) -> Journal:
        journal = create(*args, **kwargs)  # type: ignore[arg-type]
        full(journal)
        return journal

    monkeypatch.setattr(Journal, "create", cramped)


@pytest.mark.usefixtures("_cramped")
def test_a_run_whose_journal_is_full_can_be_resumed() -> None:
    result = lufleet("run", "s.toml", "--out", "o")
    assert result.exit_code == 2, result.stderr
    assert "cannot write o/journal.sqlite: database or disk is full; make room" in result.stderr
    assert lufleet(*shlex.split(result.stderr.splitlines()[-1])[1:]).exit_code == 0


def test_a_journal_that_is_full_says_which_file(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal.create(path, journal_header(SCENARIO, records_events=False)) as journal:
        full(journal)
        with pytest.raises(CannotWrite, match=r"cannot write .*journal.sqlite: "):
            journal.called(HostCall("h", 0, "PauseVm", bytes(1 << 20)))


def test_an_event_store_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"run\.duckdb"):
        write_event_store(make_run(), tmp_path / "run.duckdb.part" / "run.duckdb")


OUTPUTS = [
    # options                                   what is said
    ("--trace-out s.toml", "--trace-out s.toml: is the scenario, choose another name"),
    ("--trace-out o/result.json", "--trace-out o/result.json: is written by every run"),
    ("--dump-image first=o/../o/report.html", "first=o/../o/report.html: is written by every run"),
    ("--trace-out x --dump-image first=./x", "first=x: is the file of --trace-out x as well"),
    ("--dump-image first=x --dump-image std-2=x", "std-2=x: is the file of --dump-image first=x"),
]


@pytest.mark.parametrize(("options", "said"), OUTPUTS)
def test_no_two_outputs_are_written_to_one_file(options: str, said: str) -> None:
    before = Path("s.toml").read_text()
    result = lufleet("run", "s.toml", "--out", "o", *options.split())
    assert result.exit_code == 2
    assert said in result.stderr
    assert not Path("o").exists()
    assert Path("s.toml").read_text() == before


def test_devices_take_as_many_outputs_as_are_wanted() -> None:
    options = ("--trace-out", "/dev/null", "--dump-image", "first=/dev/null")
    result = lufleet("run", "s.toml", "--backend", "local", "--out", "o", *options)
    assert "is the file of" not in result.stderr


@pytest.mark.parametrize("kib", [16, 256, 512, 1024])
def test_an_event_store_without_room_is_not_left_in_half(tmp_path: Path, kib: int) -> None:
    path = tmp_path / "run.duckdb"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_event_store(make_run(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.glob("run.duckdb*")) == []
    write_event_store(make_run(), path)
    assert path.exists()
