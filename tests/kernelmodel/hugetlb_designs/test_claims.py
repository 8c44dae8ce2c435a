"""What was claimed of the designs in the discussion of October 2025, each claim played out."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelmodel import kexec
from kernelmodel.abi.hugetlb_pool import HugetlbPoolSer
from kernelmodel.boot import boot
from kernelmodel.errors import Busy, KernelError, KernelPanic, NoEntry
from kernelmodel.hugetlb_designs.global_state import GlobalState
from kernelmodel.machine import Machine
from kernelmodel.memory import GIB, MIB, PhysicalMemory
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB
from kernelmodel.owners import preserved_by_owner
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.hugetlb_designs.hosts import (
    ALL,
    ORDER,
    POOL,
    RELEASES,
    V4,
    Host,
    frozen,
    host,
)
from tests.kernelmodel.kernels import power_on
from tests.kernelmodel.luo_v4.hosts import CANCEL, PREPARE

SHARED = ("FLB ", "global state ", "subsystem ", "LUO: array of global states")


@pytest.mark.parametrize("design", ALL)
def test_with_no_hugetlb_file_preserved_nothing_is_stored(design: str) -> None:
    one = host(design)
    keys = one.kernel.kho.preserved_keys
    session = one.session("empty")
    plain = one.task.memfd_create()
    one.task.ftruncate(plain, MIB)
    one.preserve(session, plain)
    assert one.design.shared_bytes == 0
    if one.v4 is not None:  # where subsystems would write it
        one.v4.set_event(PREPARE)
    assert one.design.shared_bytes == 0
    assert not frozen(one)
    assert not [e.owner for e in preserved_by_owner(one.kernel) if e.owner.startswith(SHARED)]
    if one.v4 is not None:
        one.v4.set_event(CANCEL)
    after = one.reboot()
    assert after.design.shared_bytes == 0
    assert after.pool == (POOL, POOL)
    assert not frozen(after)
    assert keys < one.kernel.kho.preserved_keys


@pytest.mark.parametrize("design", ALL)
def test_the_limited_phase_begins_and_ends_implicitly_or_with_an_event(design: str) -> None:
    """Of the designs that have one, `frozen-pool` alone begins it without anybody saying so."""
    one = host(design)
    first, second = one.session("first"), one.session("second")
    one.preserve(first, one.memfd(2))
    one.preserve(second, one.memfd(2))
    implicit = frozen(one)
    assert implicit == (design == "frozen-pool")
    if one.v4 is not None:
        one.v4.set_event(PREPARE)
        explicit = frozen(one)
        assert explicit == (design in {"files-then-subsystem", "handler-subsystem"})
        one.v4.set_event(CANCEL)
        assert not frozen(one)
    one.task.close(first)
    assert frozen(one) == implicit
    one.task.close(second)
    assert not frozen(one)
    assert one.design.shared_bytes == 0
    validate_kernel(one.kernel, [one.task])


def test_a_frozen_pool_neither_grows_nor_shrinks_until_the_last_session_closes() -> None:
    one = host("frozen-pool")
    hstate = one.kernel.hugetlb.hstate(ORDER)
    hstate.nr_overcommit_huge_pages = 2
    session = one.session("s")
    one.preserve(session, one.memfd(1))
    for wanted in (POOL - 1, POOL + 1):
        with pytest.raises(Busy):
            hstate.set_max_huge_pages(wanted)
    other = one.memfd(POOL)
    assert one.task.files.fget(other).inode.hugetlb.populate(0, POOL) == POOL - 1  # type: ignore[attr-defined]
    one.task.close(session)
    hstate.set_max_huge_pages(POOL + 1)
    assert one.pool == (POOL + 1, 1)


@pytest.mark.parametrize("design", V4)
def test_who_can_reach_the_shared_state(design: str) -> None:
    """A v4 subsystem is anybody's to reach; a handler's state needs the handler and a file."""
    one = host(design)
    luo = one.kernel.luo_v4
    assert luo is not None
    one.preserve(one.session("s"), one.memfd(2))
    after = one.reboot()
    luo = after.kernel.luo_v4
    assert luo is not None
    names = {h.name for h in luo.subsystems.registered}
    compatible = after.kernel.release.hugetlb
    if design == "global-state":
        assert compatible not in names
        handler = luo.handlers[-1]
        assert handler.global_state is not None
        with pytest.raises(NoEntry), luo.global_states.get(handler):
            pass  # nothing on its way out: no file of this handler is preserved
        others = [h for h in luo.handlers if h is not handler]
        for other in others:
            with pytest.raises(NoEntry), luo.global_states.get(other, incoming=True):
                pass
    else:
        found = next(h for h in luo.subsystems.registered if h.name == compatible)
        assert luo.subsystems.data(found) != 0
        assert (found.users is not None) == (design == "handler-subsystem")


@pytest.mark.parametrize("design", ALL)
def test_the_next_kernel_needs_nothing_but_bytes(design: str, tmp_path: Path) -> None:
    """Memory goes through a file: lists that were runs of numbers are read byte by byte."""
    one = host(design)
    fd = one.memfd(5)
    one.task.files.fget(fd).inode.hugetlb.populate(0, 5)  # type: ignore[attr-defined]
    one.preserve(one.session("s"), fd)
    one.preserve(one.session("forgotten"), one.memfd(2))
    kernel = one.kernel
    one.prepare()
    kexec.kexec_file_load(kernel, kernel.release, kernel.params.cmdline)
    release, firmware = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    kernel.memory.save(tmp_path / "memory")
    machine = Machine(kernel.machine.spec)
    ranges = machine.spec.memory_map()
    machine.memory = PhysicalMemory.load(tmp_path / "memory", ranges)
    clock = Clock(CostModel.load(), 2, 0)
    after = Host(boot(machine, release, firmware, clock, config=kernel.config))
    assert after.kernel.messages == []
    after.task.close(after.retrieve("s"))
    after.finish()
    assert after.pool[1] == (POOL if design in V4 else POOL - 2)
    validate_kernel(after.kernel, [after.task])


@pytest.mark.parametrize("design", ["frozen-pool", "flb-counts", "ours"])
def test_an_flb_cannot_be_reached_without_a_preserved_file(design: str) -> None:
    one = host(design)
    flb = one.kernel.luo.flbs.registered[0]
    with pytest.raises(NoEntry):
        one.kernel.luo.flbs.get_outgoing(flb)
    session = one.session("s")
    one.preserve(session, one.memfd(1))
    assert one.kernel.luo.flbs.get_outgoing(flb) is not None
    one.kernel.luo.flbs.put_outgoing(flb)
    one.task.close(session)
    with pytest.raises(NoEntry):
        one.kernel.luo.flbs.get_outgoing(flb)


def test_what_the_sweep_has_no_memory_to_keep_the_next_kernel_allocates_anew() -> None:
    one = Host(power_on(f"{GIGANTIC} {HUGEPAGES}", RELEASES["frozen-pool"], (12 * GIB,)))
    kernel = one.kernel
    one.preserve(one.session("s"), one.memfd(2))
    kexec.kexec_file_load(kernel, kernel.release, kernel.params.cmdline)
    kernel.page_alloc.alloc_upto(0, kernel.page_alloc.nr_free_pages(), 0)
    image = kexec.kernel_kexec(kernel)  # 1 GiB pages would need a new node of KHO's tree
    assert kernel.messages[-1].startswith("WARNING: huge pages of a pool are not kept: ENOMEM")
    given = kexec.jump(kernel, image)
    after = Host(boot(kernel.machine, *given, kernel.clock, config=kernel.config))
    assert after.pool == (POOL - 2, POOL - 2)
    assert after.kernel.hugetlb.hstate(18).free_huge_pages == 3
    after.task.close(after.retrieve("s"))
    after.finish()
    assert after.pool == (POOL, POOL)
    assert after.kernel.hugetlb.hstate(18).nr_huge_pages == 3
    validate_kernel(after.kernel, [after.task])


GIGANTIC = "liveupdate=on kho_scratch=256M,256M,128M hugepagesz=1G hugepages=3"
HUGEPAGES = f"hugepagesz=2M hugepages={POOL}"


def gigantic(design: str) -> Host:
    return Host(power_on(GIGANTIC, RELEASES[design], (12 * GIB,)))


@pytest.mark.parametrize("design", ALL)
def test_without_the_count_in_early_boot_every_update_allocates_too_much(design: str) -> None:
    one = gigantic(design)
    fd = one.task.memfd_create(MFD_HUGETLB | 30 << MFD_HUGE_SHIFT)
    one.task.ftruncate(fd, 2 * GIB)
    for nr in range(3):
        one.preserve(one.session(f"s{nr}"), fd)
        one = one.reboot()
        fd = one.retrieve(f"s{nr}")
        one.finish()
        too_many = 2 if design == "subsystem-prepare" else 0
        assert one.kernel.hugetlb.hstate(18).nr_huge_pages == 3 + too_many


@pytest.mark.parametrize("design", ALL)
def test_unretrieved_pages_return_with_finish_or_stay_lost(design: str) -> None:
    one = host(design)
    one.preserve(one.session("wanted"), one.memfd(1))
    one.preserve(one.session("forgotten"), one.memfd(4))
    after = one.reboot()
    assert after.pool[1] == POOL - 5
    after.task.close(after.retrieve("wanted"))
    after.finish()
    assert (after.pool[1] == POOL) == (design in V4)
    if design in V4:
        assert after.pool == (POOL, POOL)
    else:
        assert after.pool[0] == POOL - 4
        again = after.reboot()
        assert again.pool == (POOL, POOL), "the next kexec brings them back"


def test_a_failed_freeze_leaves_a_v4_subsystem_prepared() -> None:
    """Sessions come first and fail, so the subsystem gets no cancel: pools stay frozen."""
    one = host("files-then-subsystem")
    session = one.session("s")
    one.preserve(session, one.memfd(2))
    one.prepare()
    kexec.kexec_file_load(one.kernel, one.kernel.release, one.kernel.params.cmdline)

    def failing(function: str, /, **_: object) -> None:
        if function == "luo_file_freeze":
            raise Busy("injected")

    one.kernel.fail_function = failing
    with pytest.raises(KernelError):
        kexec.kernel_kexec(one.kernel)
    one.kernel.fail_function = lambda _function, **_: None
    one.task.close(session)
    assert frozen(one)
    assert one.v4 is not None
    one.v4.set_event(PREPARE)
    one.v4.set_event(CANCEL)
    assert not frozen(one)
    validate_kernel(one.kernel, [one.task])


@pytest.mark.parametrize("design", V4)
@pytest.mark.parametrize("left", [0, 1])
def test_a_session_that_closes_after_prepare_is_not_handed_over(design: str, left: int) -> None:
    one = host(design)
    closing, staying = one.session("closing"), one.session("staying")
    one.preserve(closing, one.memfd(3))
    fd = one.memfd(2)
    if left:
        one.preserve(staying, fd)
    one.prepare()
    one.task.close(closing)
    validate_kernel(one.kernel, [one.task])
    if not left:
        assert frozen(one) == (design == "files-then-subsystem")  # until FREEZE asks it again
    after = one.reboot(prepared=True)
    assert after.pool == ((POOL - 2, POOL - 2) if left else (POOL, POOL))
    if left:
        after.task.close(after.retrieve("staying"))
        after.finish()
        assert after.pool == (POOL, POOL)
    validate_kernel(after.kernel, [after.task])


def test_a_chain_of_files_that_leads_back_into_itself_hangs_the_boot() -> None:
    one = host("global-state")
    one.preserve(one.session("s"), one.memfd(2))
    one.prepare()
    kernel, design = one.kernel, one.design
    assert isinstance(design, GlobalState)
    (part,) = design.lists.values()
    kexec.kexec_file_load(kernel, kernel.release, kernel.params.cmdline)
    given = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    kernel.memory.write_u64(part.pa + HugetlbPoolSer.SIZE - 8, part.pa)  # its next
    with pytest.raises(KernelPanic, match="hang: the chain of huge pages comes back"):
        boot(kernel.machine, *given, kernel.clock, config=kernel.config)
