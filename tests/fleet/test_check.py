"""What `lufleet check` shows."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from rich.console import Console

from fleet.check import summary
from fleet.experiment import run_rollout
from fleet.launcher import LocalBackend
from fleet.scenario import load_scenario, read_scenario

EXAMPLES = Path(__file__).parents[2] / "examples"

FLEET = """
[[fleet.host_class]]
name = "small"
count = 30
racks = 30
memory = "2GiB"
cpus = 2
release = "7.3.4"
[[fleet.host_class]]
name = "large"
count = 2
memory = "4GiB+8GiB"
cpus = 4
release = "7.3.2"
cmdline = "kho_scratch=300%"
[[fleet.vm_class]]
name = "v"
hosts = "large"
per_host = 2
memory = "1GiB"
backing = "memfd"
vcpus = 1
[update]
target = "7.3.4"
[rollout]
wave_size = 1
"""


def shown(path: Path, *overrides: str) -> str:
    """The summary as text of 80 columns, runs of spaces squeezed."""
    out = io.StringIO()
    Console(width=80, file=out).print(summary(read_scenario(path, overrides)))
    return " ".join(out.getvalue().replace("│", " ").split())


def test_the_example_is_shown_with_what_matters() -> None:
    text = shown(EXAMPLES / "rolling-update.toml")
    for part in (
        "24 hosts, 192 VMs",
        "7.3.2+hugetlb → 7.3.4+hugetlb (with the proposal flb-counts",
        "hosts alike 24 NUMA nodes 2 × 256GiB CPUs 128",
        "2MiB pages 49152 1GiB pages 256",
        "r1 8 4TiB 64 24%, 62%",
        "memfd 63 272GiB 1GiB 4GiB 8GiB 8GiB",
        "Waves (at once at most: 2 per rack)",
        "canary r1-h01 r1 1 1 10min",
        "r3-h06 next-kernel-panics 1",
        "7.3.4+hugetlb is a proposal",
    ):
        assert part in text, part
    assert "…" not in text.replace(", …", ""), "nothing is cut off"


def test_a_fleet_of_several_makes_shows_each_and_what_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(FLEET, "utf-8")
    text = shown(path)
    for part in (
        "small-1 ┃ large-1",
        "hosts alike 30 2",
        "NUMA nodes 1 × 2GiB 1 × 4GiB + 1 × 8GiB",
        "… 6 more racks",
        "30 hosts run 7.3.4 already and are left alone",
        "30 hosts have no VMs",
    ):
        assert part in text, part
    assert "proposal" not in text


def test_shares_of_the_gate_are_shown_as_what_they_come_to(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(FLEET, "utf-8")
    said = "gate halts beyond 0 hosts failed or rolled back, 0 VMs lost Makes"
    assert said in shown(path)
    gate = ("max_failed_hosts='5%'", "max_lost_vms='50%'", "max_downtime=90s")
    said = "halts beyond 1 host failed or rolled back, 2 VMs lost, a VM down for 1min30s"
    assert said in shown(path, *(f"rollout.gate.{one}" for one in gate))


def test_hosts_without_a_domain_that_has_a_limit_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    text = FLEET.replace('name = "large"', 'name = "large"\ndomains = { zone = 2 }')
    text = text.replace('release = "7.3.4"', 'release = "7.3.2"')
    path.write_text(text.replace("[rollout]", "[rollout]\nmax_unavailable = { zone = 1 }"), "utf-8")
    said = "30 hosts have no zone: max_unavailable takes them for one zone of their own"
    assert said in shown(path)


def test_many_waves_and_faults_are_shown_in_part(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    faults = "".join(f"[[faults]]\nkind='boot-hangs'\nhost='small-{n}'\n" for n in range(1, 26))
    path.write_text(FLEET.replace('"7.3.4"\n[[', '"7.3.2"\n[[') + faults, "utf-8")
    text = shown(path)
    assert "… 21 more" in text, "of 32 waves twelve rows are left"
    assert "… 5 more" in text, "of 25 faults twenty"


def test_scratch_that_may_be_too_small_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(FLEET.replace("4GiB+8GiB", "64GiB").replace("300%", "200M,400M,100M"), "utf-8")
    assert "large-1, large-2: KHO scratch is smaller than the struct pages" in shown(path)


@pytest.mark.parametrize(("globl", "boots"), [("192M", False), ("320M", True)])
def test_a_full_host_boots_unless_its_scratch_was_noted(
    globl: str, boots: bool, tmp_path: Path
) -> None:
    path = tmp_path / "s.toml"
    text = FLEET.replace("4GiB+8GiB", "16GiB").replace("300%", f"64M,{globl},64M")
    path.write_text(text.replace("1GiB", "7.5GiB").replace("= 30", "= 1"), "utf-8")
    assert ("KHO scratch is smaller" in shown(path)) != boots
    record = asyncio.run(run_rollout(load_scenario(path), LocalBackend()))
    assert [(update.reason == "") for update in record.results] == [boots] * len(record.results)


def test_one_host_is_not_spoken_of_as_several(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(FLEET.replace("count = 30\nracks = 30", "count = 1"), "utf-8")
    text = shown(path)
    assert "1 host runs 7.3.4 already and is left alone" in text
    assert "1 host has no VMs" in text


def test_own_costs_stand_beside_the_built_in_ones() -> None:
    small = EXAMPLES / "small.toml"
    assert "Costs of" not in shown(small)
    text = shown(
        small,
        "costs.kho_extend_scratch.per_unit_ps=41",
        'costs.initcalls.kind="measured"',
        'costs.initcalls.source="our lab"',
        "costs.spread.boot-tail.points=[[0, 900], [1000, 2000]]",
        "costs.spread.ours.points=[[0, 1000], [1000, 1000]]",
    )
    for part in (
        "kho_extend_scratch 65 µs + 41.291 ns / 65 µs + 41 ps / estimate",
        "initcalls 4.5 s, boot-tail 4.5 s, boot-tail measured",
        "spread boot-tail 0 % → 0.92, 50 % → 1, 0 % → 0.9, 100 % → 2 estimate",
        "spread ours – 0 % → 1, 100 % → 1 estimate",
    ):
        assert part in text
    assert "vm_boot" not in text
