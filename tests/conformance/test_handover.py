"""What `conform --keep-handover` leaves can be looked into, changed and played on from.

A byte of each structure that crosses a kexec is changed in the memory file, where the format says
it lies; the boot that is given the file notices.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fleet.cli import app
from fleet.fresh import rest_of
from tests.conformance.kho_reader import PAGE, Read, fdt_nodes, subtree, u64

ROOT = Path(__file__).parents[2]
#: Two sessions of which one has a file of two pages; then everything is taken out again.
SCRIPT = """\
open d
create d s vm-0
create d t vm-1
memfd m 8192 s
fill m 0 8192 1
seek m 100
seal m 4
preserve s m 1
kexec
open d
retrieve d s vm-0
name s
fetch s m 1
stat m
finish s
retrieve d t vm-1
finish t
"""


@dataclass
class Kept:
    """A handover on disk."""

    script: Path
    record: Path
    trace: list[str]  # from its boot on

    @property
    def memory(self) -> Path:
        return self.record.with_suffix(".memory")

    def firmware(self, what: str) -> int:
        address: int = json.loads(self.record.read_text())["firmware"][what][0]
        return address

    def read(self, pa: int, size: int) -> bytes:
        with self.memory.open("rb") as file:
            return os.pread(file.fileno(), size, pa)

    @contextmanager
    def flipped(self, pa: int, bits: int) -> Iterator[None]:
        """Some bits of a byte are otherwise for a while."""
        before = self.read(pa, 1)
        with self.memory.open("r+b") as file:
            os.pwrite(file.fileno(), bytes([before[0] ^ bits]), pa)
            yield
            os.pwrite(file.fileno(), before, pa)

    def play(self, *options: str) -> Result:
        command = ["conform", "--handover", str(self.record), *options, str(self.script)]
        return CliRunner().invoke(app, command)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("handover")
    script = folder / "two.scn"
    script.write_text(SCRIPT)
    command = ["conform", "--keep-handover", str(folder / "kept"), str(script)]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    script.with_suffix(".trace").write_text(result.stdout)
    yield Kept(script, folder / "kept" / "two.boot2.json", lines[lines.index("T end 1") + 1 :])
    shutil.rmtree(folder)  # files as long as memory


def radix_leaf(read: Read, root: int, pfn: int) -> int:
    """The byte of the lowest node in which the bit of a page stands."""
    key = 1 << 52 | pfn
    node = root
    for level in (4, 3, 2, 1, 0):
        node = u64(read, node + 8 * (key >> 15 + 9 * level & 511))
    return node + (key >> 3 & PAGE - 1)


def used(read: Read, page: int) -> int:
    """The first byte of a page that is not 0."""
    return page + next(at for at, byte in enumerate(read(page, PAGE)) if byte)


@dataclass(frozen=True)
class Fields:
    """Where the structures of this handover lie."""

    kept: Kept

    def at(self, what: str) -> int:
        read, fdt = self.kept.read, self.kept.firmware("fdt")
        tree = int.from_bytes(fdt_nodes(read(fdt, PAGE))[""]["preserved-memory-map"], "little")
        luo = subtree(read, fdt, "LUO")
        sessions = u64(read, luo + 16)
        files = u64(read, sessions + 16 + 64)
        memfd = u64(read, files + 16 + 48)
        chunk = u64(read, memfd + 32)
        table = u64(read, chunk + 8)
        return {
            "root FDT": fdt,
            "radix node": used(read, tree),
            "radix leaf": radix_leaf(read, tree, u64(read, table) & 2**52 - 1),
            "luo_ser": luo,
            "session block": sessions,
            "file block": files,
            "memfd_ser": memfd,
            "vmalloc chunk": chunk,
            "folio table": table,
            "folio content": (u64(read, table) & 2**52 - 1) * PAGE,
            "scratch array": self.kept.firmware("scratch"),
            "kernel": self.kept.firmware("kernel"),
        }[what]


#: Structure, offset of the byte in it, bits to turn, and what comes of it.
FLIPS = [
    ("root FDT", 0, 1, "T 11 retrieve ENOENT"),  # no FDT: a boot without a handover
    ("radix node", 0, 0x10, "panic: "),
    ("radix leaf", 0, 0xFF, "T 13 fetch E"),  # a page that is not preserved
    ("luo_ser", 4, 1, "panic: luo: incompatible handover"),
    ("session block", 8, 0x80, "panic: luo: cannot read the sessions"),
    ("session block", 16, 1, "T 11 retrieve ENOENT"),  # a name
    ("file block", 8, 0x80, "T 10 open EIO"),
    ("file block", 16, 1, "T 10 open EIO"),  # no handler is called so
    ("file block", 16 + 56, 2, "T 13 fetch ENOENT"),  # a token
    ("memfd_ser", 0, 1, "T 14 stat ok size=8192 pos=101"),
    ("memfd_ser", 16, 8, "T 14 stat ok size=8192 pos=100 seals=12"),
    ("vmalloc chunk", 9, 0x10, "T 13 fetch EIO"),
    ("folio table", 1, 0x10, "T 13 fetch EIO"),
    ("folio content", 17, 1, "T 14 stat ok size=8192 pos=100 seals=4 hash="),
    ("scratch array", 11, 0x80, "panic: hang: scratch at"),
    ("kernel", 0x202, 1, "panic: triple fault: no kernel at the entry point"),
]


@pytest.mark.parametrize(("what", "offset", "bits", "outcome"), FLIPS)
def test_a_byte_changed_in_the_file_changes_what_the_next_boot_does(
    kept: Kept, what: str, offset: int, bits: int, outcome: str
) -> None:
    with kept.flipped(Fields(kept).at(what) + offset, bits):
        result = kept.play()
    assert result.exit_code == 0
    assert outcome in result.output
    assert result.stdout.splitlines() != kept.trace
    assert ("the trace ends here" in result.stderr) == outcome.startswith("panic")


def test_the_files_as_they_were_give_the_rest_of_the_trace(kept: Kept) -> None:
    assert kept.play().stdout.splitlines() == kept.trace
    result = kept.play("--check")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{kept.script}: as recorded, {len(kept.trace)} lines\n"
    with kept.flipped(Fields(kept).at("memfd_ser"), 1):
        result = kept.play("--check")
    assert result.exit_code == 4
    assert f"{kept.script}: 'stat m': the kernel says 'T 14 stat ok" in result.stdout


def test_a_process_needs_nothing_but_the_two_files_and_the_rest_of_the_script(
    kept: Kept, tmp_path: Path
) -> None:
    moved = tmp_path / kept.record.name
    fields = json.loads(kept.record.read_text()) | {"memory": str(kept.memory)}
    moved.write_text(json.dumps(fields))
    rest = "\n" * 8 + "kexec\n" + SCRIPT.partition("kexec\n")[2]
    assert rest_of(SCRIPT, 2) == rest
    command = [sys.executable, "-m", "fleet.one_boot", "2", str(moved), ""]
    done = subprocess.run(
        command, cwd=ROOT, input=rest, env={}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == kept.trace


def test_the_memory_file_is_all_of_memory_and_takes_little_room(kept: Kept) -> None:
    size = kept.memory.stat()
    assert size.st_size == 2 << 30
    assert size.st_blocks * 512 < 100 << 20


def test_every_fault_of_a_record_is_named(kept: Kept, tmp_path: Path) -> None:
    record = tmp_path / "two.boot2.json"
    ram = [{"base": 4096, "size": 4096, "nid": 0}, {"base": 0, "size": 4096, "nid": 0}]
    firmware = {"memory_map": ram, "fdt": 7, "scratch": [1, -1], "kernel": None}
    record.write_text(json.dumps({"boot": "2", "memory": "gone", "firmware": firmware}))
    result = CliRunner().invoke(app, ["conform", "--handover", str(record), str(kept.script)])
    assert (result.exit_code, result.stdout) == (2, "")
    for fault in (
        "'boot' is '2'", "gone cannot be read", "'firmware.cmdline' is None",
        "{'base': 0, 'size': 4096, 'nid': 0}", "'firmware.fdt' is 7",
        "'firmware.scratch' is [1, -1]", "'firmware.kernel' is None",
    ):  # fmt: skip
        assert f"{record}: " in result.stderr
        assert fault in result.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read"), ("boot 2", "cannot be read"), ("[]", "is no object")],
)
def test_what_is_no_record_is_bad_input(
    content: str | None, says: str, kept: Kept, tmp_path: Path
) -> None:
    record = tmp_path / "two.boot2.json"
    if content is not None:
        record.write_text(content)
    result = CliRunner().invoke(app, ["conform", "--handover", str(record), str(kept.script)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr


def test_a_handover_of_a_boot_that_the_script_has_not_is_bad_input(
    kept: Kept, tmp_path: Path
) -> None:
    short = tmp_path / "short.scn"
    short.write_text("open d\n")
    result = CliRunner().invoke(app, ["conform", "--handover", str(kept.record), str(short)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"is for boot 2, but {short} has 1" in result.stderr
