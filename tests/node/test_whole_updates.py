"""Promise: figures that rows were made from come out of whole updates, and the document says how.

`tests/kernelmodel/sim/test_calibration.py` redoes the arithmetic of rows; here a host boots,
preserves, jumps and retrieves, so that what is charged, how often and on how many lanes counts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from node.api import Backing, UpdateResult
from tests.node.update_hosts import COST, fault
from tests.node.whole_updates import (
    LARGE,
    ORDINARY,
    SECOND,
    made_of,
    made_of_markdown,
    slowest_vm_ns,
    twice,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "cost-model.md"
IDLE = replace(ORDINARY, vms=0, spare_gib=0)


def blackout_ns(result: UpdateResult) -> int:
    return sum(result.phases_ns.values())


def near(ns: int, seconds: float, percent: int) -> bool:
    return abs(ns - seconds * SECOND) <= seconds * SECOND * percent / 100


def test_the_document_shows_which_rows_a_downtime_is_of() -> None:
    """Between its markers; on failure, paste what this test prints."""
    columns = made_of()
    for *of, all_ in columns.values():
        assert 0 <= all_ - sum(of) <= all_ // 30  # what others do adds up to the rest
    table = made_of_markdown(columns)
    print(table)
    _, begin, rest = DOCUMENT.read_text("utf-8").partition("<!-- begin made-of -->\n")
    shown, end, _ = rest.partition("<!-- end made-of -->\n")
    assert begin
    assert end
    assert shown == table


def test_a_kexec_without_vms_takes_what_hy_fix_took_and_its_memory_map() -> None:
    """7.6 s whatever the memory, for a kernel that initialises it later; 7.3 does so at boot."""
    for host, cpus_ns in (IDLE, 0), (replace(LARGE, vms=0, spare_gib=0), 300_000_000):
        phases = host.updated().phases_ns
        rest = sum(phases.values()) - phases["memmap"] - COST.cost_ns("agent_start")
        assert near(rest - cpus_ns, 7.6, 2)
    assert near(blackout_ns(IDLE.updated()), 8.5, 1)


def test_preserved_memory_costs_more_than_the_same_memory_left_free() -> None:
    """12 TiB: 34 s of struct pages one by one, for which 5 s in parallel fall away."""
    full, free = LARGE.updated(), replace(LARGE, vms=0, spare_gib=0).updated()
    assert near(full.phases_ns["memmap"], 34, 1)
    assert near(free.phases_ns["memmap"], 5, 3)
    assert near(blackout_ns(full) - blackout_ns(free), 30, 2)


def test_48_gib_of_small_pages_are_preserved_and_found_again_as_published() -> None:
    """469 ms and more than 2 s, with the pages of the folio table on top."""
    host = replace(ORDINARY, backing=Backing.MEMFD, vms=1, vm_gib=48)
    plain = host.updated()
    keys = host.updated(twice("kho_radix_add_key")).outside_ns["preserve"]
    assert near(keys - plain.outside_ns["preserve"], 0.469, 1)
    found = host.updated(twice("kho_reserve_preserved")).phases_ns["memmap"]
    assert near(found - plain.phases_ns["memmap"], 2.0, 1)


def test_hvo_saves_500_gigantic_pages_what_it_was_published_to_save() -> None:
    """1.32 s for 2.15 s, on one node: nodes share the work today."""
    host = replace(IDLE, spare_gib=500, nodes=1)
    on, off = (
        blackout_ns(replace(host, cmdline=f"hugetlb_free_vmemmap={word}").updated())
        for word in ("on", "off")
    )
    assert near(off - on, 0.83, 1)


def test_a_host_that_has_to_be_reset_is_out_for_about_ten_minutes() -> None:
    assert near(slowest_vm_ns(replace(ORDINARY, faults=(fault("boot-hangs"),)).updated()), 723, 1)
    assert near(
        slowest_vm_ns(replace(ORDINARY, faults=(fault("next-kernel-panics"),)).updated()), 603, 1
    )


def test_an_ordinary_host_lands_in_the_published_management_gap() -> None:
    """5 to 30 s, of which the kernel's boot is the most; with a tail, but not out of the gap."""
    downtimes = sorted(
        vm.downtime_ns or 0 for seed in range(100) for vm in ORDINARY.updated(COST, seed).vms
    )
    median, p99 = downtimes[len(downtimes) // 2], downtimes[len(downtimes) * 99 // 100]
    assert downtimes[0] > 5 * SECOND
    assert downtimes[-1] < 30 * SECOND
    assert 8 * SECOND < median < 11 * SECOND
    assert median * 1.1 < p99 < median * 2
    assert COST.cost_ns("initcalls") + COST.cost_ns("userspace_init") > median / 2
