"""What the blackout grows with. Virtual time only: relations, and figures where they are exact."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from kernelmodel.kho.radix_tree import KeyRun
from kernelmodel.sim.cost import CostModel
from node.api import Backing, HugepagePool, UpdateResult, VmSpec
from node.host import Host
from tests.node.update_hosts import COST, GIB, HOST, MIB, make_host, update

NODES = (80 * GIB, 80 * GIB)
SCRATCH = "kho_scratch=256M,256M,256M"
GUEST_ORDERS = {Backing.MEMFD: 0, Backing.HUGETLB_2M: 9, Backing.HUGETLB_1G: 18}


def vms(backing: Backing, each: int, number: int = 1, vcpus: int = 2) -> list[VmSpec]:
    return [VmSpec(f"vm{nr}", HOST, each, backing, vcpus) for nr in range(number)]


def big_host(specs: Iterable[VmSpec], *, cpus: int = 16, cost: CostModel = COST) -> Host:
    pools = (HugepagePool(2 * MIB, 36 << 9), HugepagePool(GIB, 36))
    return make_host(
        vms=specs, node_bytes=NODES, pools=pools, cpus=cpus, cmdline=SCRATCH, cost=cost
    )


def updated(specs: Iterable[VmSpec], *, cpus: int = 16, cost: CostModel = COST) -> UpdateResult:
    result = update(big_host(specs, cpus=cpus, cost=cost))
    assert result.reason == ""
    return result


def guest_keys(specs: list[VmSpec]) -> list[KeyRun]:
    """The keys of guest memory in the tree that the next kernel will get."""
    host = big_host(specs)
    for vm in specs:
        host.preserve_vm(vm.name)
    order = GUEST_ORDERS[specs[0].backing]
    runs = [run for run in host.kernel.kho.outgoing_runs() if run.order == order]
    return [run for run in runs if run.nr > 1] if order == 0 else runs


def test_a_gigabyte_page_takes_one_key_where_2_mib_pages_take_512() -> None:
    gigabyte = sum(run.nr for run in guest_keys(vms(Backing.HUGETLB_1G, 8 * GIB)))
    megabytes = sum(run.nr for run in guest_keys(vms(Backing.HUGETLB_2M, 8 * GIB)))
    assert (gigabyte, megabytes) == (8, 8 * 512)


def test_folio_tables_and_bitmaps_shrink_with_the_number_of_pages() -> None:
    def handed_over(backing: Backing) -> tuple[int, int]:
        host = big_host(vms(backing, 16 * GIB))
        empty = sum(run.nr << run.order for run in host.kernel.kho.outgoing_runs())
        nodes = len(host.kernel.kho.outgoing_nodes())
        host.preserve_vm("vm0")
        runs = host.kernel.kho.outgoing_runs()
        pages = sum(run.nr << run.order for run in runs)
        return pages - empty - (16 * GIB >> 12), len(host.kernel.kho.outgoing_nodes()) - nodes

    giant, giant_nodes = handed_over(Backing.HUGETLB_1G)
    huge, huge_nodes = handed_over(Backing.HUGETLB_2M)
    plain, plain_nodes = handed_over(Backing.MEMFD)
    assert plain > huge > giant > 0
    assert huge - giant == 16 * 512 * 16 // 4096 - 1  # 16 bytes a folio, and one page at least
    assert plain_nodes > huge_nodes >= giant_nodes


def test_struct_pages_of_preserved_memory_are_initialised_one_by_one() -> None:
    """Twice the memory, twice the difference; CPUs do not help."""

    def memmap(gib: int, cpus: int) -> int:
        return updated(vms(Backing.HUGETLB_1G, gib * GIB), cpus=cpus).phases_ns["memmap"]

    for cpus in (16, 64):
        base = memmap(8, cpus)
        once, twice = memmap(16, cpus) - base, memmap(24, cpus) - base
        assert once > 0
        assert abs(twice - 2 * once) < once // 100
        per_page = COST.cost_ns("kho_init_preserved_page", 8 * GIB >> 12)
        # the deferred initialisation, in parallel over the nodes, has as many pages less
        assert per_page * 2 // 5 < once <= per_page


@pytest.mark.parametrize("backing", list(Backing))
def test_the_blackout_grows_with_preserved_memory(backing: Backing) -> None:
    def blackout(gib: int) -> int:
        return sum(updated(vms(backing, gib * GIB)).phases_ns.values())

    small, middle, large = blackout(2), blackout(8), blackout(32)
    assert small < middle < large


def test_the_next_kernel_walks_a_key_for_each_page() -> None:
    def walking(backing: Backing) -> int:
        return updated(vms(backing, 16 * GIB)).phases_ns["kho"]

    four_k, two_m, one_g = map(walking, Backing)
    keys = 16 * GIB // (4 << 10), 16 * GIB // (2 << 20), 16
    per_key = COST.row("kho_extend_scratch").per_unit_ps
    # a table with its chunks is preserved page by page besides
    assert keys[0] - keys[1] <= (four_k - two_m) * 1000 // per_key <= (keys[0] - keys[1]) * 11 // 10
    assert keys[1] - keys[2] <= (two_m - one_g) * 1000 // per_key <= (keys[1] - keys[2]) * 11 // 10


def test_more_cpus_take_longer_to_bring_up() -> None:
    def init(cpus: int) -> int:
        host = make_host(vms=vms(Backing.MEMFD, GIB), pools=(), cpus=cpus)
        return update(host).phases_ns["init"]

    per_cpu = [COST.cost_ns("smp_bringup", cpus - 1) for cpus in (8, 64, 384)]
    few, more, many = map(init, (8, 64, 384))
    assert (many - more, more - few) == (per_cpu[2] - per_cpu[1], per_cpu[1] - per_cpu[0])
    assert few < more < many


def test_vms_retrieve_in_parallel_as_far_as_there_are_cpus() -> None:
    def retrieve(number: int, cpus: int) -> int:
        specs = vms(Backing.HUGETLB_2M, 256 * MIB, number)
        return updated(specs, cpus=cpus).phases_ns["retrieve"]

    alone = retrieve(1, 64)
    assert retrieve(32, 64) < 3 * alone
    assert retrieve(32, 4) > 4 * alone
    assert retrieve(32, 4) > retrieve(32, 8) > retrieve(32, 64)


def test_a_vm_more_than_there_are_cpus_costs_the_others_its_share_of_them() -> None:
    """17 VMs on 16 CPUs: a sixteenth more than 16, and not a second round for the last one."""
    luck = [op for op, row in COST.rows.items() if row.spread]
    without = CostModel.load("".join(f'[{op}]\nspread = ""\n' for op in luck))

    def retrieve(number: int) -> int:
        specs = vms(Backing.HUGETLB_2M, 256 * MIB, number)
        return updated(specs, cpus=16, cost=without).phases_ns["retrieve"]

    full = retrieve(16)
    assert abs(retrieve(17) - full * 17 // 16) < full // 100
    assert abs(retrieve(40) - full * 40 // 16) < full // 50


def test_preserving_takes_time_before_the_blackout_and_grows_with_the_number_of_folios() -> None:
    outside = {
        backing: updated(vms(backing, 16 * GIB)).outside_ns["preserve"] for backing in Backing
    }
    assert outside[Backing.MEMFD] > outside[Backing.HUGETLB_2M] > outside[Backing.HUGETLB_1G]


def test_gigantic_pages_that_come_over_need_not_be_allocated() -> None:
    few = updated(vms(Backing.HUGETLB_1G, 2 * GIB)).phases_ns["hugetlb"]
    many = updated(vms(Backing.HUGETLB_1G, 32 * GIB)).phases_ns["hugetlb"]
    assert few - many == COST.cost_ns("hugetlb_alloc_gigantic", 34) - COST.cost_ns(
        "hugetlb_alloc_gigantic", 4
    )


def test_one_cost_row_moves_its_phase_by_exactly_what_it_says() -> None:
    base = COST.row("kernel_restart_prepare").base_ns
    dearer = CostModel.load(
        f'[kernel_restart_prepare]\nbase_ns = {base + 12345}\nkind = "measured"\nsource = "test"\n'
    )
    before = updated(vms(Backing.HUGETLB_2M, GIB)).phases_ns
    after = updated(vms(Backing.HUGETLB_2M, GIB), cost=dearer).phases_ns
    assert after == before | {"kexec": before["kexec"] + 12345}
