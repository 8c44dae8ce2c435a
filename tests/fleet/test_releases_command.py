"""`lufleet releases`: what it prints, for people and for programs, and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from kernelmodel.releases import CATALOGUE

ROOT = Path(__file__).parents[2]

OWN = """\
[[release]]
name = "7.3.4-lean"
based_on = "7.3.4"
memfd = false
"""


def releases(*options: str, ends: int = 0) -> str:
    result = CliRunner().invoke(app, ["releases", *options], env={"COLUMNS": "80"})
    assert result.exit_code == ends, result.output
    return result.output


def test_the_catalogue_is_shown_with_its_strings_and_what_is_a_proposal() -> None:
    lines = [line.replace("│", " ").split() for line in releases().splitlines()]
    assert ["6.16", "kho-v1", "–", "–", "–", "released"] in lines
    assert ["7.3.4", "kho-v4", "luo-v5", "memfd-v2", "–", "released"] in lines
    assert ["7.3.4+hugetlb", "kho-v4", "luo-v5", "memfd-v2", "huge-memfd-v1", "proposal"] in lines
    assert "7.3.4+hugetlb: with the proposal flb-counts, RFC of Dec 2025" in releases()


def test_a_program_gets_every_release_with_every_field() -> None:
    shown = {one["name"]: one for one in json.loads(releases("--json"))}
    assert set(shown) == set(CATALOGUE)
    for name, one in shown.items():
        assert {field: getattr(CATALOGUE[name], field) for field in one} == one
    assert shown["7.2.13"]["kho_extends_scratch"] is False


def test_a_users_own_are_shown_beside_the_others(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(OWN)
    text = releases("--file", str(file))
    assert "own" in text
    assert "7.3.4-lean: made by the user from 7.3.4" in text
    text = releases("--file", str(file), "--path", "7.3.2,7.3.4-lean")
    assert "EIO" in text
    assert "1 of 1 step is not live: take a cold reboot there, which restarts the VMs" in text


def test_a_path_is_told_step_by_step() -> None:
    said = json.loads(releases("--path", "6.19, 7.2.13,7.3.4", "--json"))
    assert [(step["from"], step["to"], step["verdict"]) for step in said["steps"]] == [
        ("6.19", "7.2.13", "loses-memory"),
        ("7.2.13", "7.3.4", "live"),
    ]
    assert (said["vms"], said["cold_steps"]) == (["memfd"], 1)
    assert "live all the way" in releases("--path", "7.2.13,7.3.2,7.3.4")


def test_from_and_to_ask_for_a_path_and_from_alone_for_all_steps() -> None:
    assert "live all the way" in releases("--from", "7.2.13", "--to", "7.3.4")
    assert "nothing to do" in releases("--from", "7.3.4", "--to", "7.3.4")
    vms = ("--vms", "memfd,hugetlb-1G")
    steps = json.loads(releases("--from", "7.3.4+hugetlb", *vms, "--json"))["steps"]
    assert [step["to"] for step in steps] == [name for name in CATALOGUE if name != "7.3.4+hugetlb"]
    alike = [
        one.name
        for one in CATALOGUE.values()
        if one.hugetlb_design == "flb-counts" and one.name != "7.3.4+hugetlb"
    ]
    assert [step["to"] for step in steps if step["verdict"] == "live"] == alike


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--path", "7.3.4,7.3"), '--path: there is no release "7.3", did you mean "7.3.4"?'),
        (("--path", "7.3.4"), "one release is no path"),
        (("--from", "5"), '--from: there is no release "5", known releases: 6.16'),
        (("--from", "6.16", "--to", "5"), '--to: there is no release "5"'),
        (("--to", "7.3.4"), "--to needs --from"),
        (("--from", "6.16", "--path", "6.16,6.19"), "leave --from and --to out"),
        (("--vms", "memfd,disk"), '--vms: "disk" is no backing'),
        (("--file", "nowhere.toml"), "nowhere.toml: cannot read"),
    ],
)
def test_what_cannot_be_answered_ends_with_2(options: tuple[str, ...], said: str) -> None:
    text = " ".join(releases(*options, ends=2).replace("│", " ").split())
    assert said in text


def test_mistakes_in_the_file_are_told_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(OWN.replace("false", "7") + 'lou = "luo-v6"\n')
    lines = releases("--file", str(file), ends=2).splitlines()
    assert [line.removeprefix(f"{file}:")[0] for line in lines] == ["4", "5"]


def test_the_documentation_shows_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "releases.md").read_text("utf-8")
    shown = re.findall(r"^\$ lufleet releases(.*)\n([^`]*)```", text, flags=re.MULTILINE)
    assert len(shown) == 4
    for options, output in shown:
        printed = "\n".join(line.rstrip() for line in releases(*options.split()).splitlines())
        assert printed == output.strip("\n"), options
