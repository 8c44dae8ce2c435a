"""What designs share is charged alike, and where one waits for another it shows."""

from __future__ import annotations

import pytest

from kernelmodel.sim.clock import Phase
from kernelmodel.sim.cost import CostModel
from tests.kernelmodel.hugetlb_designs.hosts import POOL, RELEASES, Host, host
from tests.kernelmodel.kernels import CMDLINE, power_on

FREED = 8  # frames of struct pages behind 2 MiB
SER = "hugetlb_luo_folio_ser"
COSTS = CostModel.load()


def cost(op: str, units: int = 1) -> int:
    return COSTS.cost_ns(op, units)


def boot_ns(one: Host) -> int:
    """How long the next kernel takes to its last initcall, from its first."""
    phases: list[Phase] = []
    one.kernel.clock.on_phase = phases.append
    one.reboot()
    return sum(phase.duration_ns for phase in phases if phase.name == "init")


@pytest.mark.parametrize("design", ["frozen-pool", "files-then-subsystem", "handler-subsystem"])
def test_struct_pages_given_up_cost_time_whoever_brings_the_folio_back(design: str) -> None:
    """With HVO a listed folio gives its struct pages up again, as one that a file brings does."""
    took = {}
    for hvo in ("off", "on"):
        cmdline = f"{CMDLINE} hugepages={POOL} hugetlb_free_vmemmap={hvo}"
        one = Host(power_on(cmdline, RELEASES[design]))
        one.preserve(one.session("s"), one.memfd(2))
        took[hvo] = boot_ns(one)
    assert took["on"] - took["off"] == cost("kho_unpreserve_free", (POOL - 2) * FREED)


def test_files_wait_while_the_first_one_writes_the_pool_down() -> None:
    """It does so under the FLB's lock, which whoever preserves a file takes."""
    ends = {}
    for design in ("flb-counts", "frozen-pool"):
        one = host(design)
        sessions = [(one.session(f"s{nr}"), one.memfd(1)) for nr in range(2)]
        with one.kernel.clock.phase("preserve") as phase:
            for nr, (session, fd) in enumerate(sessions):
                with one.kernel.clock.lane(f"vmm{nr}"):
                    one.preserve(session, fd)
        ends[design] = [phase.lane_end_ns(f"vmm{nr}") - phase.start_ns for nr in range(2)]
    page_and_list = cost("vmalloc") + cost("kho_preserve_vmalloc") + cost(SER, POOL)
    for plain, listing in zip(ends["flb-counts"], ends["frozen-pool"], strict=True):
        assert listing - plain > page_and_list


def test_the_state_of_a_handler_is_made_once() -> None:
    one = host("global-state")
    clock, took = one.kernel.clock, []
    for nr in range(3):
        session, fd = one.session(f"s{nr}"), one.memfd(1)
        began = clock.now_ns
        one.preserve(session, fd)
        took.append(clock.now_ns - began)
    first, second, third = took
    assert first - second >= cost("luo_flb_preserve") > abs(second - third)
