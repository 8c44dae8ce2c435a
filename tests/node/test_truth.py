"""Break what crosses the jump, place by place: whom it hits is lost, never silently fine.

Every case is one update of a small host whose memory is changed at the jump. `Verdict.check` holds
the report against the bytes themselves.
"""

from __future__ import annotations

import pytest

from kernelmodel.abi.folio_runs import single_folio_runs
from kernelmodel.abi.folio_table import FOLIO_SER_SIZE
from kernelmodel.abi.memfd import MEMFD_LUO_FOLIO_UPTODATE
from kernelmodel.kernel import Kernel
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from node.api import HostOutcome, UpdatePolicy, VmOutcome
from tests.node.tampering import (
    SMALL_VMS,
    Damage,
    Place,
    flip,
    preserved_files,
    the_places,
    update_with,
)
from tests.node.update_hosts import OLD, outcomes

NAMES = [vm.name for vm in SMALL_VMS]
FOLIOS = {vm.name: vm.memory_bytes // vm.backing.page_bytes for vm in SMALL_VMS}
PLACES = {place.what: place for place in the_places()}
#: Offsets of `nr_folios` in what the two handlers write.
NR_FOLIOS_OF_MEMFD, NR_FOLIOS_OF_HUGEMFD = 24, 16
#: Distance of the bits that are tried in long structures; no multiple of 8.
STRIDE = 41


def nothing(_: Kernel) -> None:
    pass


def test_without_damage_everybody_is_fine() -> None:
    verdict = update_with(nothing)
    verdict.check()
    assert set(outcomes(verdict.result).values()) == {VmOutcome.PRESERVED}


def test_without_damage_the_bytes_that_are_compared_are_not_zero() -> None:
    before = update_with(nothing).before
    assert list(before) == NAMES
    pages = [page for pages in before.values() for page in pages]
    assert len(pages) == 16 + 3 * 4 + 3 * 2
    assert len(set(pages)) == len(pages)


@pytest.mark.parametrize("what", PLACES)
def test_a_bit_that_flips_anywhere_is_noticed_by_whom_it_hits(what: str) -> None:
    place = PLACES[what]
    for bit in range(0, place.size * 8, STRIDE):
        update_with(flip(place.pa, bit)).check()


def test_a_bit_that_flips_in_the_radix_tree_is_noticed_by_whom_it_hits() -> None:
    places: list[Place] = []

    def note_words(kernel: Kernel) -> None:
        for level, pa in kernel.kho.outgoing_nodes():
            page = kernel.memory.read(pa, PAGE_SIZE)
            words = [at for at in range(0, PAGE_SIZE, 8) if any(page[at : at + 8])]
            places.extend(Place(f"level {level}", pa + at, 8) for at in {8, *words})

    update_with(note_words)
    for number, place in enumerate(places):
        for bit in range(number % 11, 64, 11):
            update_with(flip(place.pa, bit)).check()


def drop_folio(vm: str, folio: int) -> Damage:
    def damage(kernel: Kernel) -> None:
        tree = kernel.kho.outgoing_tree
        assert tree is not None
        for name, _, folios in preserved_files(kernel):
            if name == vm:
                runs = single_folio_runs(folios.runs)
                heads = [run.pfn + at * run.step for run in runs for at in range(run.nr)]
                tree.del_run(heads[folio], folios.order)

    return damage


@pytest.mark.parametrize(("vm", "folio"), [(vm, at) for vm in NAMES for at in range(FOLIOS[vm])])
def test_a_vm_one_of_whose_pages_is_dropped_from_the_radix_tree_is_lost(
    vm: str, folio: int
) -> None:
    verdict = update_with(drop_folio(vm, folio))
    verdict.check()
    assert verdict.lost == {vm}
    assert verdict.result.reason == "vm-lost"
    assert verdict.result.detail == f"{vm}: retrieve failed with EIO"


def test_whatever_key_is_dropped_nobody_is_called_fine_who_is_not() -> None:
    keys: list[tuple[int, int]] = []

    def note_keys(kernel: Kernel) -> None:
        for run in kernel.kho.outgoing_runs():
            keys.extend((run.pfn + (at << run.order), run.order) for at in range(run.nr))

    def drop(pfn: int, order: int) -> Damage:
        def damage(kernel: Kernel) -> None:
            tree = kernel.kho.outgoing_tree
            assert tree is not None
            assert tree.has(pfn, order)
            tree.del_run(pfn, order)

        return damage

    update_with(note_keys)
    assert len(keys) > sum(FOLIOS.values())
    for pfn, order in keys:
        update_with(drop(pfn, order)).check()


def edges(vm: str) -> list[int]:
    """First, middle and last folio."""
    return sorted({0, FOLIOS[vm] // 2, FOLIOS[vm] - 1})


@pytest.mark.parametrize(("vm", "folio"), [(vm, at) for vm in NAMES for at in edges(vm)])
@pytest.mark.parametrize("field", ["pfn", "index"])
def test_a_vm_with_a_corrupt_folio_entry_is_lost(vm: str, folio: int, field: str) -> None:
    entry_pa = PLACES[f"folio table of {vm}"].pa + folio * FOLIO_SER_SIZE
    first, bits = (0, 52) if field == "pfn" else (64, 64)
    for bit in range(first + folio % 7, first + bits, 7):
        verdict = update_with(flip(entry_pa, bit))
        verdict.check()
        assert vm in verdict.lost or verdict.kernel_died, bit


def test_two_folios_that_swap_places_are_noticed() -> None:
    table_pa = PLACES["folio table of huge"].pa

    def swap(kernel: Kernel) -> None:
        first, last = table_pa, table_pa + 3 * FOLIO_SER_SIZE
        one, other = kernel.memory.u64(first), kernel.memory.u64(last)
        kernel.memory.write_u64(first, other)
        kernel.memory.write_u64(last, one)

    verdict = update_with(swap)
    verdict.check()
    assert verdict.lost == {"huge"}
    assert verdict.result.detail == "huge: memory came back changed"


def test_a_page_that_is_no_longer_up_to_date_will_be_cleared_and_is_lost() -> None:
    uptodate = 52 + MEMFD_LUO_FOLIO_UPTODATE.bit_length() - 1
    verdict = update_with(flip(PLACES["folio table of plain"].pa, uptodate))
    assert verdict.lost == {"plain"}
    assert verdict.result.detail == "plain: memory came back changed"


@pytest.mark.parametrize("vm", NAMES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_guest_page_that_changed_behind_the_vms_back_is_noticed(vm: str, where: str) -> None:
    def change(kernel: Kernel) -> None:
        for name, _, folios in preserved_files(kernel):
            if name == vm:
                runs = list(single_folio_runs(folios.runs))
                start = runs[0].pfn
                end = runs[-1].pfn + (runs[-1].nr << folios.order)
                pfn = {"first": start, "middle": (start + end) // 2, "last": end - 1}[where]
                flip((pfn << PAGE_SHIFT) + 4095, 7)(kernel)

    verdict = update_with(change)
    assert verdict.lost == {vm}
    assert verdict.result.detail == f"{vm}: memory came back changed"


def test_a_kernel_that_dies_of_a_file_it_retrieves_is_given_up() -> None:
    """More folios than its table has: the kernel is up already when it runs off the table."""

    def lead_astray(kernel: Kernel) -> None:
        _, luo_file, _ = next(preserved_files(kernel))
        kernel.memory.write_u64(luo_file.data + NR_FOLIOS_OF_MEMFD, 1 << 40)

    verdict = update_with(lead_astray)
    verdict.check()
    result = verdict.result
    assert (result.outcome, result.reason, result.release) == (
        HostOutcome.ROLLED_BACK,
        "panic",
        OLD,
    )
    assert "retrieve_fd" in result.detail
    assert "unable to handle page fault" in result.detail
    assert set(outcomes(result).values()) == {VmOutcome.RESTARTED}
    assert "retrieve" not in result.phases_ns  # it never came to its end
    assert result.blackout_end_ns is None
    assert "userspace" in result.phases_ns


def test_vms_that_are_lost_before_the_kernel_dies_stay_lost() -> None:
    def both(kernel: Kernel) -> None:
        drop_folio("plain", 0)(kernel)
        *_, (_, giant, _) = preserved_files(kernel)
        kernel.memory.write_u64(giant.data + NR_FOLIOS_OF_HUGEMFD, 1 << 40)

    for restart in (True, False):
        verdict = update_with(both, UpdatePolicy(restart_lost_vms=restart))
        verdict.check()
        assert outcomes(verdict.result) == {
            "plain": VmOutcome.LOST,
            "huge": VmOutcome.RESTARTED,
            "giant": VmOutcome.RESTARTED,
        }
        assert verdict.result.gauges.vms["running"] == (3 if restart else 2)
