"""Releases that a user adds: what they become, where mistakes are found, who may name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.bad_input import BadInput
from fleet.cli import app
from fleet.coordinator import Coordinator
from fleet.own_releases import load_releases
from fleet.plan import make_plan
from fleet.scenario import load_scenario
from fleet.snapshot import Books
from kernelmodel.releases import CATALOGUE, Release
from tests.fleet.rollouts import Log
from tests.fleet.test_scenario import faults, write

OWN = """\
[[release]]
name = "7.4-rc1"
based_on = "7.3.4+hugetlb"
memfd = "memfd-v3"
[update]"""


def load(folder: Path, text: str) -> tuple[Release, ...]:
    (folder / "r.toml").write_text(text)
    return load_releases(folder / "r.toml")


def test_a_release_is_like_its_base_but_for_what_is_said(tmp_path: Path) -> None:
    lean, leaner, older = load(
        tmp_path,
        """\
[[release]]
name = "7.3.4-lean"
based_on = "7.3.4"
memfd = false
[[release]]
name = "7.3.4-leaner"
based_on = "7.3.4-lean"
luo = false
relocatable = false
[[release]]
name = "7.1+ours"
based_on = "7.3.4+hugetlb"
kho = "kho-v3"
luo = "luo-v4"
hugetlb = "hugetlb-v2"
hugemfd = "huge-memfd-v2"
kho_extends_scratch = false
proposal = "with our backport"
""",
    )
    assert (lean.kho, lean.luo, lean.memfd) == ("kho-v4", "luo-v5", None)
    assert lean.title == "7.3.4-lean (made by the user from 7.3.4)"
    assert (leaner.kho, leaner.luo, leaner.memfd, leaner.relocatable) == (
        "kho-v4",
        None,
        None,
        False,
    )
    assert older == Release(
        "7.1+ours",
        "kho-v3",
        "luo-v4",
        "memfd-v2",
        hugetlb="hugetlb-v2",
        hugemfd="huge-memfd-v2",
        hugetlb_design="flb-counts",
        proposal="with our backport",
        kho_extends_scratch=False,
        based_on="7.3.4+hugetlb",
    )
    assert older.title == "7.1+ours (made by the user from 7.3.4+hugetlb, with our backport)"


MISTAKES = [
    # what is said of a release called x and based on 7.3.4+hugetlb, line, what is found
    ('name = "7.3.4"', 2, '"7.3.4" is in the catalogue'),
    ('name = "a b"', 2, "is no name of a release"),
    (f'name = "{"7" * 65}"', 2, "up to 64 letters"),
    ('based_on = "7.3.3"', 3, "is no release that is modelled"),
    ('based_on = "x"', 3, "is no release that is modelled"),
    ('lou = "luo-v6"', 4, 'unknown key, did you mean "luo"?'),
    ('luo = "luo-v600"', 4, "has 8 bytes, 1 to 7"),
    ('luo = ""', 4, "has 0 bytes"),
    ("luo = 6", 4, 'is no compatible string, text like "luo-v6", or false'),
    ("luo = true", 4, "is no compatible string"),
    ('memfd = "memfd-vß"', 4, "is no compatible string"),
    ("hugetlb = false", 4, "release.0.hugetlb: missing, it goes with hugemfd, hugetlb_design"),
    ('hugemfd = "memfd-v2"', 4, "is the name of the memfd handler"),
    ('hugetlb_design = "flb-count"', 4, 'did you mean "flb-counts"?'),
    ("relocatable = 1", 4, "1 is neither true nor false"),
    ('kho = false\nluo = "luo-v5"', 5, "a kernel without KHO has none"),
    ('luo = false\nmemfd = "memfd-v2"', 5, "a kernel without LUO has none"),
    (f'proposal = "{"x" * 101}"', 4, "is too long"),
    ('[[release]]\nname = "x"\nbased_on = "7.3.4"', 5, '"x" is there twice, first at'),
    ('[[release]]\nname = "y"', 4, "release.1.based_on: missing"),
    ("[[release]", 4, "not valid TOML"),
]


@pytest.mark.parametrize(("said", "line", "found"), MISTAKES)
def test_a_mistake_is_found_on_its_line(tmp_path: Path, said: str, line: int, found: str) -> None:
    given = {"name": '"x"', "based_on": '"7.3.4+hugetlb"'}
    key, _, value = said.partition(" = ")
    extra = "" if key in given else f"{said}\n"
    given |= {key: value} if key in given else {}
    lines = "".join(f"{name} = {value}\n" for name, value in given.items())
    with pytest.raises(BadInput) as caught:
        load(tmp_path, f"[[release]]\n{lines}{extra}")
    hits = [fault for fault in caught.value.faults if found in str(fault)]
    assert hits, [str(fault) for fault in caught.value.faults]
    assert (Path(hits[0].file).name, hits[0].line) == ("r.toml", line)


def test_all_mistakes_come_at_once_and_none_twice(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, '[[release]]\nname = "a b"\nluo = 1\n[[release]]\nname = "y"\nkho = 2\n')
    assert [fault.line for fault in caught.value.faults] == [1, 2, 3, 4, 6]


def test_a_file_without_releases_is_no_file_of_releases(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="release: missing"):
        load(tmp_path, 'name = "no release"\n')
    with pytest.raises(BadInput, match="cannot read"):
        load_releases(tmp_path / "nowhere.toml")


def test_a_scenario_may_name_its_own_wherever_a_release_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, s=f"[update] -> {OWN}", hosts="7.3.2+hugetlb -> 7.4-rc1")
    scenario = load_scenario(path, ["update.target=7.4-rc1", "update.allow_incompatible=true"])
    assert (scenario.hosts[0].release, scenario.target_release) == ("7.4-rc1", "7.4-rc1")
    assert scenario.releases == (scenario.catalogue["7.4-rc1"],)
    assert scenario.update_title == (
        "7.4-rc1, 7.3.2+hugetlb (with the proposal flb-counts, RFC of Dec 2025) → 7.4-rc1 (made "
        "by the user from 7.3.4+hugetlb, with the proposal flb-counts, RFC of Dec 2025)"
    )
    assert load_releases(path) == scenario.releases


def test_a_scenario_may_name_a_file_of_releases(tmp_path: Path) -> None:
    path = write(tmp_path, s='seed = 3 -> releases = "r.toml"')
    (tmp_path / "r.toml").write_text(OWN.removesuffix("[update]"))
    assert set(load_scenario(path).catalogue) == {*CATALOGUE, "7.4-rc1"}
    assert load_releases(path) == load_releases(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_text('[[release]]\nname = "7.4-rc1"\nbased_on = "7"\n[releas]\n')
    found = [(Path(fault.file).name, fault.line) for fault in faults(path)]
    assert found == [("r.toml", 3), ("r.toml", 4)]
    (tmp_path / "r.toml").unlink()
    assert [(Path(fault.file).name, fault.line) for fault in faults(path)] == [("s.toml", 2)]


def test_what_a_release_is_belongs_to_the_scenarios_digest(tmp_path: Path) -> None:
    plain = load_scenario(write(tmp_path)).digest
    own = load_scenario(write(tmp_path, s=f"[update] -> {OWN}")).digest
    other = OWN.replace("memfd-v3", "memfd-v4")
    assert len({plain, own, load_scenario(write(tmp_path, s=f"[update] -> {other}")).digest}) == 3


def test_an_incompatible_target_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, s=f"[update] -> {OWN}")
    (fault,) = faults(path, "update.target=7.4-rc1")
    assert "EIO, plain memfds want a handler for memfd-v2, 7.4-rc1 has memfd-v3" in str(fault)
    assert "from 7.3.2+hugetlb, which 3 hosts run (" in str(fault)
    assert ", with 3 VMs, v1 first: " in str(fault)
    assert fault.right.startswith("possible: 7.3.4+hugetlb, ")
    assert fault.right.endswith("; or say update.allow_incompatible = true")
    load_scenario(path, ["update.target=7.4-rc1", "update.allow_incompatible=true"])


def test_a_host_that_is_up_to_date_crosses_nothing(tmp_path: Path) -> None:
    row = "h3,r2,z1,2,64GiB,16,7.3.2+hugetlb,4096,16,"
    path = write(tmp_path, hosts=f"{row} -> h3,r2,z1,2,64GiB,16,6.16,0,0,")
    (fault,) = faults(path)
    assert "7.3.4+hugetlb cannot take over from 6.16, which host h3 runs" in str(fault)
    assert not any("from 6.16" in str(fault) for fault in faults(path, "update.target=6.16"))


ROLLOUT = """\
[[release]]
name = "7.3.5-ours"
based_on = "7.3.4"
[[release]]
name = "7.4-rc1"
based_on = "7.3.4"
kho = "kho-v5"
[[fleet.host_class]]
name = "n"
count = 2
racks = 2
memory = "4GiB"
cpus = 2
release = "7.3.4"
[[fleet.vm_class]]
name = "v"
per_host = 1
memory = "1GiB"
backing = "memfd"
vcpus = 2
[update]
target = "7.3.5-ours"
[rollout]
canary = 0
wave_size = 2
[rollout.gate]
max_lost_vms = "100%"
"""
TITLE = "7.3.4 → 7.3.5-ours (made by the user from 7.3.4)"


def test_a_rollout_to_ones_own_release_says_so_wherever_it_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(ROLLOUT)
    command = ["run", str(path), "--backend", "local", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert TITLE in " ".join(result.output.split())
    page = (tmp_path / "out" / "report.html").read_text()
    assert TITLE in page
    assert "from 7.3.4, by the user" in page
    checked = CliRunner().invoke(app, ["check", str(path)])
    assert TITLE in " ".join(checked.output.split())
    scenario = load_scenario(path)
    plan = make_plan(scenario)
    shown = Books(scenario).snapshot(0, Coordinator(plan, scenario.rollout.gate, Log()))
    assert shown.proposal == "made by the user from 7.3.4", "the label of the info metric"


def test_a_rollout_over_a_border_loses_what_the_kernel_loses(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(ROLLOUT)
    options = ["--set", "update.target=7.4-rc1", "--set", "update.allow_incompatible=true"]
    checked = CliRunner().invoke(app, ["check", str(path), *options])
    assert "not live from 7.3.4 (2 hosts, 2 VMs of theirs): loses-memory" in checked.output
    out = ["--backend", "local", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["run", str(path), *options, *out])
    assert "KHO: disabling KHO revival" in result.output
    said = json.loads((tmp_path / "out" / "result.json").read_text())
    assert said["hosts"]["updated"] == said["vms"]["lost"] == 2
