"""`lufleet inspect`: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import fleet.inspect_command
from fleet.cli import app
from kernelmodel.errors import ModelBug
from kernelmodel.image.load import load_image
from kernelmodel.memory import PAGE_SHIFT
from tests.kernelmodel.handovers import REAL, pages_of, real_description, real_pages
from tests.kernelmodel.test_image import raw_file


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def lufleet(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, words)])


def test_it_prints_what_is_known_of_the_real_image() -> None:
    result = lufleet(REAL)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == real_description()
    assert result.stderr == ""


def test_it_boots_and_says_that_everything_came_back() -> None:
    result = lufleet(REAL, "--boot")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    boot = said.pop("boot")
    assert said == real_description()
    assert (boot["outcome"], boot["agrees"], boot["release"]) == ("up", True, "7.3.4")
    assert json.loads(lufleet(REAL, "--boot", "--no-hashes").stdout)["boot"]["agrees"]


def test_it_boots_with_the_scratch_and_memory_that_are_said() -> None:
    result = lufleet(
        *(REAL, "--boot", "--memory", "1GiB", "--memory", "1GiB"),
        *("--scratch", "0x20000000+32MiB", "--scratch", "640MiB+128M"),
    )
    boot = json.loads(result.stdout)["boot"]
    assert boot["agrees"]
    assert boot["scratch"] == [[512 << 20, 32 << 20], [640 << 20, 128 << 20]]
    assert boot["memory"][-1] == [1 << 30, 1 << 30]
    exact = json.loads(lufleet(REAL, "--boot", "--memory", "0+2G").stdout)["boot"]
    assert exact["memory"] == [[0, 2 << 30]]


@pytest.mark.parametrize("columns", ["160", "80", "40"])
def test_it_prints_for_people_who_search_what_it_prints(
    monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = lufleet(REAL, "--pretty", "--boot")
    assert result.exit_code == 0
    for part in ("0x4af000, kho-v4", "luod-internal", "218ffab10490bf03", "18446744073709551615"):
        assert part in result.stdout
    assert "booted 7.3.4: up; every file came back as it is" in " ".join(result.stdout.split())


def test_what_is_wrong_inside_is_told_and_is_no_failure(tmp_path: Path) -> None:
    pages, _ = real_pages()
    (luo,) = [pfn for pfn, page in pages.items() if page.startswith(b"luo-v5\0")]
    pages[luo] = b"luo-v6" + pages[luo][6:]
    path = raw_file(tmp_path / "ram", pages)
    result = lufleet(path, "--boot")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert said["faults"] == ["LUO's data are 'luo-v6', not 'luo-v5': they are not read"]
    assert said["boot"]["outcome"].startswith("panic: ")
    assert not said["boot"]["agrees"]
    assert "fault: LUO's data" in lufleet(path, "--pretty").stdout


def test_files_that_do_not_come_back_are_pointed_out(tmp_path: Path) -> None:
    pages, fdt_pa = real_pages()
    (entry,) = [
        pfn for pfn, page in pages.items() if int.from_bytes(page[8:16], "little") == 65_536
    ]
    page = bytearray(pages[entry])
    page[17] = 1  # a seal that nobody knows
    pages[entry] = bytes(page)
    path = raw_file(tmp_path / "ram", pages)
    boot = json.loads(lufleet(path, "--boot").stdout)["boot"]
    assert not boot["agrees"]
    assert [file.get("error") for file in boot["sessions"][0]["files"]] == [
        None,
        "EOPNOTSUPP",
        None,
    ]
    assert "not all files came back" in lufleet(path, "--boot", "--pretty").stdout
    assert lufleet(path, "--fdt", hex(fdt_pa)).exit_code == 0


def test_several_fdts_are_told(tmp_path: Path) -> None:
    pages, fdt_pa = real_pages()
    pages[0x100] = pages[fdt_pa >> PAGE_SHIFT]
    result = lufleet(raw_file(tmp_path / "ram", pages))
    assert json.loads(result.stdout) == real_description()
    assert "0x4af000 is read, the latest by its kexec count" in result.stderr
    assert "--fdt takes another: 0x100000" in result.stderr
    other = json.loads(lufleet(tmp_path / "ram", "--fdt", "1M").stdout)
    assert other["fdt_pa"] == 1 << 20


def test_a_file_that_is_no_image_is_bad_input() -> None:
    result = lufleet(Path(__file__))
    assert result.exit_code == 2
    assert "there is no FDT of KHO; what would be right is a .kho file" in result.stderr
    assert result.stdout == ""
    result = lufleet("nowhere.kho")
    assert result.exit_code == 2
    assert "nowhere.kho: cannot be read: No such file" in result.stderr
    assert lufleet(Path(__file__).parent).exit_code == 2


def test_options_that_make_no_sense_are_told_all_at_once() -> None:
    result = lufleet(
        *(REAL, "--boot", "--fdt", "here", "--scratch", "1G", "--scratch", "x+y"),
        *("--memory", "1GiB", "--memory", "0+1GiB"),
    )
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "'here' is no address; write an address like 0x40000000, or 1GiB",
        "'1G' is no range of memory; write an address and a size like 0x40000000+64MiB",
        "'x' is no address; write an address like 0x40000000, or 1GiB",
        (
            "--memory has both sizes and ranges; give either sizes of NUMA nodes, or all ranges of "
            "memory with their addresses"
        ),
    ]
    assert lufleet(REAL, "--boot", "--memory", "4k").exit_code == 2
    without = lufleet(REAL, "--memory", "4GiB")
    assert (without.exit_code, without.stdout) == (2, "")
    assert "--memory and --release say how to boot; add --boot" in without.stderr
    assert lufleet(REAL, "--boot", "--memory", "0+1G", "--memory", "1M+1G").exit_code == 2


def test_scratch_on_the_image_is_bad_input() -> None:
    result = lufleet(REAL, "--boot", "--scratch", "0x4af000+4MiB")
    assert result.exit_code == 2
    assert "is not clear of the image, which has 0x4af000" in result.stderr
    assert result.stdout == ""


def test_a_bug_of_the_model_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ModelBug("an invariant")

    monkeypatch.setattr(fleet.inspect_command, "boot_image", broken)
    result = lufleet(REAL, "--boot")
    assert result.exit_code == 4
    assert "the simulator itself has failed: ModelBug: an invariant" in result.stderr
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("name", "start"), [("small.kho", b"KHOIMG1\0"), ("small.kho.gz", b"\x1f\x8b")]
)
def test_of_a_whole_memory_the_handover_can_be_saved(
    tmp_path: Path, name: str, start: bytes
) -> None:
    pages, _ = real_pages()
    path = raw_file(tmp_path / "ram", pages)
    result = lufleet(path, "--save", tmp_path / name)
    assert result.exit_code == 0
    assert f"{name}: the 45 pages that belong to the handover" in result.stderr
    assert (tmp_path / name).read_bytes().startswith(start)
    assert pages_of(load_image(tmp_path / name)) == pages
    assert json.loads(lufleet(tmp_path / name).stdout) == real_description()
    assert lufleet(path, "--save", tmp_path).exit_code == 2


def test_an_image_is_not_replaced_by_what_belongs_to_the_handover(tmp_path: Path) -> None:
    pages, _ = real_pages()
    path = raw_file(tmp_path / "ram", pages)
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    result = lufleet(path, "--save", tmp_path / "link")
    assert result.exit_code == 2
    assert "link is the image itself; name another file" in result.stderr
    assert path.read_bytes() == before


def test_a_gzip_with_a_wrong_checksum_is_said_to_be_damaged(tmp_path: Path) -> None:
    packed = bytearray(REAL.read_bytes())
    packed[-5] ^= 1  # the checksum, before the length
    for end in (len(packed), -4, -8):
        (tmp_path / "a.gz").write_bytes(packed[:end])
        said = json.loads(lufleet(tmp_path / "a.gz").stdout)
        assert said.pop("faults")[0].startswith("the gzip is damaged: its checksum")
        assert said == real_description()


def test_the_documentation_shows_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "118")
    text = (root / "docs" / "inspect.md").read_text()
    command, _, shown = text.partition("$ lufleet inspect ")[2].partition("\n")
    assert command
    printed = "\n".join(line.rstrip() for line in lufleet(*command.split()).stdout.splitlines())
    assert shown.partition("\n```")[0] == printed
