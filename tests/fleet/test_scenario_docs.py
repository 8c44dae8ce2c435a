"""docs/scenarios.md describes every key that a scenario may have, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from fleet.columns import WELL_KNOWN_DOMAINS
from fleet.inventory import HOST_COLUMNS, VM_COLUMNS
from fleet.scenario import read_scenario
from kernelmodel.releases import CATALOGUE
from node.faults import FAULT_KINDS

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "scenarios.md").read_text("utf-8")

EVERYTHING = """
[[release]]
name = "own"
based_on = "7.3.4"
[fleet]
hosts = "hosts.csv"
[fleet.columns.hosts]
domains = {}
[fleet.columns.vms]
[[fleet.host_class]]
name = "n"
count = 1
memory = "8GiB"
cpus = 1
release = "7.3.2"
domains = {}
hugepages = {}
[[fleet.vm_class]]
name = "v"
per_host = 1
memory = "1GiB"
backing = "memfd"
vcpus = 1
[update]
target = "7.3.4"
[rollout]
max_unavailable = {}
[rollout.gate]
[[faults]]
kind = "slow-boot"
host = "n-1"
factor = 2
[costs]
"""


def documented() -> set[str]:
    """Every key in a table of a section, by its full path."""
    keys: set[str] = set()
    prefix = ""
    for line in DOCS.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").strip("[]")
            prefix = "" if section == "Top level" else f"{section}."
        elif found := re.match(r"\| `([^`]+)` \|", line):
            keys.add(prefix + found[1])
    return keys


def asked(folder: Path) -> set[str]:
    """Every key that the reader looks for when it sees every table."""
    folder.joinpath("hosts.csv").write_text(
        "host,rack,memory,cpus,release\nh,r,8GiB,1,7.3.2\n", "utf-8"
    )
    folder.joinpath("s.toml").write_text(EVERYTHING, "utf-8")
    found = {key.replace(".[]", "") for key in read_scenario(folder / "s.toml").asked}
    return {key for key in found if not key.endswith(".*")} | {"costs.*"}


def test_every_key_is_documented_and_no_other(tmp_path: Path) -> None:
    assert documented() == asked(tmp_path)


def test_every_column_kind_and_release_is_named() -> None:
    for name in (*HOST_COLUMNS.all, *VM_COLUMNS.all, *FAULT_KINDS, *CATALOGUE, *WELL_KNOWN_DOMAINS):
        assert re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", DOCS), name


def test_the_examples_that_it_links_are_there() -> None:
    for link in re.findall(r"\]\((\.\./[^)]+)\)", DOCS):
        assert (ROOT / "docs" / link).resolve().exists(), link
