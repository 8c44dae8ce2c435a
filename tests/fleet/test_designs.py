"""`lufleet designs`: a table, JSON and a report of every design on one host."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fleet.cli import app
from fleet.designs.compare import Compared, compare
from fleet.designs.failures import fail
from fleet.designs.host import DesignHost
from fleet.designs.spec import PRESETS, HostSpec, small
from fleet.designs.table import caveats, print_tables, sections
from kernelmodel.hugetlb_designs import DESIGNS
from kernelmodel.memory import GIB, MIB
from kernelmodel.sim.cost import CostModel

DOCS = Path(__file__).parents[2] / "docs" / "hugetlb-designs.md"
SMALL = ("--memory", "64GiB", "--vms", "16")


def designs(*options: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["designs", *options], env={"COLUMNS": "170"})
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def found() -> dict[str, Compared]:
    spec = small(HostSpec())
    return {one.name: one for one in compare(spec, DESIGNS, CostModel.load(), lambda _name: None)}


def test_the_table_of_the_docs_is_what_the_command_prints() -> None:
    """To the digit: whoever changes a cost, or a design, changes it there."""
    (shown,) = re.findall(r"^2TiB on .*?^└─.*?$", DOCS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert shown in designs()


def test_the_host_is_what_was_asked_for() -> None:
    spec = PRESETS["2TiB"]
    assert (spec.memory, spec.vms) == (2048 * GIB, 400)
    vms = spec.vm_specs()
    assert len(vms) == 400
    assert sum(vm.guest_memfd for vm in vms) == 100
    for order, size in ((18, GIB), (9, 2 << 20)):
        used = sum(vm.pages for vm in vms if vm.order == order)
        assert used == spec.pool_pages()[size] * 80 // 100
        on_first = sum(vm.pages for vm in vms if vm.order == order and vm.nid == 0)
        assert on_first / used == pytest.approx(0.6, abs=0.02)
    assert {vm.nid for vm in replace(spec, nodes=1).vm_specs()} == {0}
    large = PRESETS["12TiB"]
    assert (large.memory, large.vms, large.nodes, large.cpus) == (12 << 40, 600, 4, 384)
    tried = small(replace(large, vms=3))
    assert (tried.memory, tried.vms, tried.nodes) == (256 * GIB, 3, 2)


def test_nodes_share_memory_in_whole_mebibytes() -> None:
    nodes = HostSpec(memory=64 * GIB, nodes=7).node_bytes()
    assert sum(nodes) == 64 * GIB
    assert {size % MIB for size in nodes} == {0}
    assert max(nodes) - min(nodes) == MIB
    assert HostSpec(nodes=4).node_bytes() == (512 * GIB,) * 4


def test_a_note_says_whose_figures_leave_vms_out(found: dict[str, Compared]) -> None:
    said = "global-state: figures are of 12 VMs only, 4 are refused with "
    (note,) = caveats(list(found.values()))
    assert note.startswith(said)


def test_every_design_brings_every_vm_back_but_those_it_cannot_take(
    found: dict[str, Compared],
) -> None:
    for name, one in found.items():
        assert not one.update.ended
        assert not one.update.lost
        assert one.failures.chain == 10
        assert one.failures.chain_lost == 0
        assert one.failures.cancel_leaks == 0
        guests = 4 if name == "global-state" else 0
        assert sum(one.update.refused.values()) == guests
        assert one.update.guest_memfd_works is (name != "global-state")


def test_pools_come_back_as_they_were_but_where_nobody_counts_early(
    found: dict[str, Compared],
) -> None:
    for name, one in found.items():
        uncounted = name == "subsystem-prepare"
        assert bool(one.update.boot_excess) is uncounted
        assert bool(one.update.final_excess) is uncounted
        assert bool(one.failures.drift) is uncounted
        assert one.failures.drift_memory == 0


def test_what_is_written_is_a_list_of_the_pool_of_files_or_a_few_numbers(
    found: dict[str, Compared],
) -> None:
    spec = small(HostSpec())
    pool = sum(spec.pool_pages().values())
    used = sum(vm.pages for vm in spec.vm_specs())
    for name, one in found.items():
        entries = {
            "subsystem-prepare": used,
            "frozen-pool": pool,
            "files-then-subsystem": pool,
            "handler-subsystem": pool,
        }
        if name in entries:
            assert one.update.shared_bytes == 141 + 8 * entries[name]
    assert found["flb-counts"].update.shared_bytes == 37
    assert found["ours"].update.shared_bytes == 27


def test_lists_of_a_pool_keep_what_was_added_and_not_that_pages_went(
    found: dict[str, Compared],
) -> None:
    listing = {"frozen-pool", "files-then-subsystem", "handler-subsystem"}
    for name, one in found.items():
        whole = small(HostSpec()).pool_pages()[2 * MIB] // 50
        assert one.failures.resized == (whole, whole if name in {*listing, "ours"} else 0)
        assert one.failures.shrunk == (whole, whole if name == "ours" else 0)


def test_ours_is_no_worse_anywhere_and_better_in_one_row(found: dict[str, Compared]) -> None:
    ours, theirs = found["ours"], found["flb-counts"]
    assert ours.update.phases == theirs.update.phases
    differ = [
        label
        for section in sections([theirs, ours])
        for label, (one, other) in section.rows
        if one != other
    ]
    assert differ == ["shared state", "grown at run time: kept", "shrunk at run time: kept"]
    assert ours.update.shared_bytes < theirs.update.shared_bytes
    assert theirs.failures.resized[1] == 0
    assert ours.failures.resized[1] == ours.failures.resized[0] > 0


def test_phases_add_up_and_pools_are_frozen_as_the_designs_say(
    found: dict[str, Compared],
) -> None:
    whole = {"frozen-pool", "files-then-subsystem", "handler-subsystem"}
    for name, one in found.items():
        assert sum(one.update.phases.values()) == pytest.approx(one.update.blackout_seconds)
        rows = {label.strip(): cells for part in sections([one]) for label, cells in part.rows}
        shares = [rows[phase][0].rsplit(maxsplit=1)[-1] for phase in one.update.phases]
        assert 97 <= sum(int(share[:-1]) for share in shares if share.endswith("%")) <= 103
        assert (one.update.restricted_seconds > 0) is (name in whole)
        assert (one.update.prepare_seconds > 0) is (
            name not in {"frozen-pool", "flb-counts", "ours"}
        )
    implicit = found["frozen-pool"].update.restricted_seconds
    explicit = found["handler-subsystem"].update.restricted_seconds
    assert implicit > explicit
    serial = found["files-then-subsystem"].update
    parallel = found["handler-subsystem"].update
    assert serial.prepare_seconds > parallel.preserve_seconds + parallel.prepare_seconds


def test_work_that_designs_share_is_charged_alike(found: dict[str, Compared]) -> None:
    """A list that nothing changed since PREPARE is not written again inside the blackout."""
    files = found["flb-counts"].update.phases
    for name in ("subsystem-prepare", "files-then-subsystem", "handler-subsystem"):
        phases = found[name].update.phases
        assert phases["freeze"] == pytest.approx(files["freeze"], rel=0.01)
        assert files["retrieve"] < phases["retrieve"] < 1.01 * files["retrieve"]  # folios claimed
        assert phases["kexec"] == files["kexec"]
        assert phases["userspace"] == pytest.approx(files["userspace"], rel=0.001)
    assert found["frozen-pool"].update.phases["freeze"] > 2 * files["freeze"]  # the sweep


def test_a_failed_freeze_leaves_what_the_subsystem_had_written(
    found: dict[str, Compared],
) -> None:
    said = {name: one.failures.freeze_fails for name, one in found.items()}
    assert said == {
        "subsystem-prepare": "list kept until the next PREPARE",
        "global-state": "LUO's page kept until the next PREPARE",
        "frozen-pool": "",
        "files-then-subsystem": "pools frozen until the next PREPARE",
        "handler-subsystem": "",
        "flb-counts": "",
        "ours": "",
    }


def test_a_vm_that_is_refused_leaves_no_session_and_the_others_go_on() -> None:
    """Its session had the VM in it already when its memory was refused."""
    spec = replace(small(HostSpec()), memory=64 * GIB, vms=8, guest_memfd=50)
    host = DesignHost(spec, "global-state", CostModel.load())
    keys = host.kernel.kho.preserved_keys
    host.preserve()
    assert len(host.refused) == len(host.agent.sessions) == 4
    host.give_up()
    assert host.kernel.kho.preserved_keys == keys
    host.refused.clear()
    host.update()
    assert len(host.refused) == 4
    assert host.lost == {}
    assert host.agent.sessions == {}


@pytest.mark.parametrize("share", [75, 100])
def test_failures_are_those_of_a_vm_that_the_design_can_preserve(share: int) -> None:
    spec = replace(small(HostSpec()), guest_memfd=share)
    found = fail(spec, "global-state", CostModel.load())
    if share < 100:
        assert found.vm_pages == 11
        assert found.file_fails == "one VM"
        assert found.freeze_fails == "LUO's page kept until the next PREPARE"
    else:
        assert (found.vm_pages, found.file_fails, found.freeze_fails) == (0, "", "")
    assert (found.never_retrieved, found.file_not_retrieved, found.retrieve_failed) == (0, 0, 0)
    assert found.chain == 10


def test_guest_memfd_alone_is_compared_where_it_can_be() -> None:
    options = ("--guest-memfd-share", "100", "--design", "global-state", "--design", "ours")
    text = designs(*SMALL, *options)
    assert re.search(r"VMs it cannot preserve +│ +16 │ +– │", text)
    assert re.search(r"a file fails: held up +│ +– │ +one VM │", text)
    assert re.search(r"session not retrieved +│ +– │ +(\d+) of \1 lost │", text)
    assert "global-state: figures are of 0 VMs only, 16 are refused with ENOENT" in text


def test_a_narrow_console_gets_several_tables(found: dict[str, Compared]) -> None:
    for columns, tables in ((140, 1), (139, 2), (76, 3), (60, 4), (44, 7)):
        console = Console(width=columns, file=StringIO())
        with console.capture() as printed:
            console.print(print_tables(list(found.values()), "a host", columns))
        lines = printed.get().splitlines()
        assert sum("what it takes" in line for line in lines) == tables
        assert max(map(len, lines)) <= columns


def test_the_table_has_a_column_for_each_and_says_what_luo_must_offer() -> None:
    text = designs(*SMALL, "--design", "flb-counts", "--design", "global-state")
    assert "64GiB on 2 nodes, 16 VMs" in text
    assert re.search(r"retrieve fails\s+│ +(\d+) of \1 lost │ +– │", text)
    assert "global-state (P. Tatashin, 7 Oct 2025): beyond LUO v4," in text
    assert "global-state: figures are of 12 VMs only, 4 are refused with ENOENT" in text
    assert "frozen-pool" not in text


def test_a_program_gets_the_figures_and_a_report_has_plots(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = (*SMALL, "--design", "ours", "--json", "--out", str(out))
    done = CliRunner().invoke(app, ["designs", *options], env={"COLUMNS": "170"})
    printed = json.loads(done.stdout)
    assert done.stderr.split("wrote ")[1:] == [f"{out}/designs.json\n", f"{out}/report.html\n"]
    written: dict[str, Any] = json.loads((out / "designs.json").read_text())
    assert printed == written
    (one,) = written["designs"]
    assert one["release"] == "7.3.4+ours"
    assert sum(one["update"]["phase_shares"].values()) == pytest.approx(1)
    assert [point["vms"] for point in one["curves"]["vms"]] == [4, 8, 16, 32]
    assert [point["memory"] >> 30 for point in one["curves"]["memory"]] == [16, 32, 64, 128]
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 6
    HTMLParser().feed(page)


def test_the_same_options_give_the_same_figures() -> None:
    assert designs(*SMALL, "--design", "frozen-pool") == designs(*SMALL, "--design", "frozen-pool")


def test_vms_that_no_page_is_left_for_are_not_counted(tmp_path: Path) -> None:
    options = ("--memory", "256GiB", "--page-size", "1GiB", "--vms", "200", "--design", "ours")
    text = designs(*options, "--out", str(tmp_path))
    assert "256GiB on 2 nodes, 180 VMs (200 asked for, more than there are pages)," in text
    (one,) = json.loads((tmp_path / "designs.json").read_text())["designs"]
    assert [point["vms"] for point in one["curves"]["vms"]] == [50, 100, 180]
    # Less memory has no room for scratch beside such a pool: those points are left out.
    assert [point["memory"] >> 30 for point in one["curves"]["memory"]] == [256, 512]


def test_costs_can_be_ones_own(tmp_path: Path) -> None:
    costs = tmp_path / "ours.toml"
    costs.write_text("[kho_init_preserved_page]\nper_unit_ps = 0\n")
    options = (*SMALL, "--design", "ours")
    assert f", costs of {costs}" in " ".join(designs(*options, "--costs", str(costs)).split())
    ours, built_in = (
        json.loads(designs(*options, "--json", *own)) for own in (("--costs", str(costs)), ())
    )
    assert built_in["cost_digest"] == CostModel.load().digest() != ours["cost_digest"]
    before, after = (of["designs"][0]["update"]["phases"] for of in (built_in, ours))
    assert after["memmap"] < before["memmap"]
    assert after | {"memmap": 0} == before | {"memmap": 0}
    costs.write_text('[kho_init]\nunit = "ms"\n[kho_inits]\n')
    said = designs("--costs", str(costs), "--vms", "0", code=2)
    for what in (
        f"{costs}:2: cost row kho_init.unit: ",
        f"{costs}:3: cost row kho_inits: ",
        "--vms",
    ):
        assert what in said
    said = designs("--costs", str(tmp_path / "none.toml"), code=2)
    assert said.startswith("--costs: cannot read ")


def test_what_is_wrong_is_told_all_at_once() -> None:
    said = designs(
        *("--memory", "1XB", "--vms", "0", "--design", "foo", "--host", "3TiB"),
        *(
            "--pool-use",
            "101",
            "--page-size",
            "4KiB",
            "--guest-memfd-share",
            "101",
            "--nodes",
            "17",
        ),
        code=2,
    )
    for what in (
        *("--memory:", "--vms: 0 is not from 1", 'no design "foo"', 'did you mean "2TiB"?'),
        '--page-size: "4KiB" is neither 2MiB nor 1GiB',
        "--pool-use: 101 is not from 1 to 100",
        *("--guest-memfd-share: 101 is not from 0 to 100", "--nodes: 17 is not from 1 to 16"),
    ):
        assert what in said
    assert all(line.startswith("--") for line in said.splitlines()), "a line for each"
    for memory in ("15GiB", "65TiB"):
        said = designs("--memory", memory, code=2)
        assert f"--memory: {memory} is not from 16GiB to 64TiB" in said
