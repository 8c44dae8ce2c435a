"""Designs when memory runs out, or a freeze fails: nothing of it stays in the shared state."""

from __future__ import annotations

import pytest

from kernelmodel import kexec
from kernelmodel.errors import Busy, NoMemory
from kernelmodel.hugetlb_designs.v4 import MarkingSubsystem
from kernelmodel.memory import GIB
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.hugetlb_designs.hosts import ALL, ORDER, POOL, RELEASES, Host, frozen, host
from tests.kernelmodel.kernels import power_on

CMDLINE = (
    "liveupdate=on kho_scratch=256M,256M,128M hugepagesz=1G hugepages=3"
    f" hugepagesz=2M hugepages={POOL}"
)


def marked(one: Host) -> dict[int, int]:
    """Folios by order that files have marked, where files mark."""
    design = one.design
    if not isinstance(design, MarkingSubsystem):
        return {}
    return {order: folios.total for order, folios in design.marks.items()}


def starve(one: Host, session: int, fd: int, most: int = 30) -> int:
    """Preserve with no memory, then with a page, with two, until it works; with how many."""
    memory, before = one.kernel.page_alloc, (one.design.shared_bytes, marked(one))
    for left in range(most):
        held, _ = memory.alloc_upto(0, memory.nr_free_pages(), 0)
        pfn, nr = held.pop(held.index(max(held, key=lambda run: run[1])))
        memory.free_run(pfn, left)
        try:
            one.preserve(session, fd)
        except NoMemory:
            done = False
        else:
            done = True
        for start, nr_pages in (*held, (pfn + left, nr - left)):
            memory.free_run(start, nr_pages)
        if done:
            return left
        assert (one.design.shared_bytes, marked(one)) == before
        assert before[0] or not frozen(one)
        validate_kernel(one.kernel, [one.task])
    return most


@pytest.mark.parametrize("design", [name for name in ALL if name != "files-then-subsystem"])
def test_a_file_that_memory_runs_out_for_leaves_nothing_in_the_shared_state(design: str) -> None:
    """The first file, and one for whose size KHO's tree needs nodes of its own."""
    enough = 30
    for _ in range(2):  # the second time it never works
        one = Host(power_on(CMDLINE, RELEASES[design], (12 * GIB,)))
        assert 3 < starve(one, one.session("s"), one.memfd(2)) < 30
        fd = one.task.memfd_create(MFD_HUGETLB | 30 << MFD_HUGE_SHIFT)
        one.task.ftruncate(fd, 2 * GIB)
        enough = starve(one, one.session("g"), fd, enough)
        assert 3 < enough < 30
    after = one.reboot()
    after.task.close(after.retrieve("s"))
    after.finish()
    assert after.pool == (POOL, POOL)
    assert after.kernel.hugetlb.hstate(18).nr_huge_pages == 3


def test_surplus_pages_freed_while_the_pool_is_frozen_go_when_it_thaws() -> None:
    one = host("frozen-pool")
    hstate = one.kernel.hugetlb.hstate(ORDER)
    hstate.nr_overcommit_huge_pages = 2
    fd, session = one.memfd(POOL + 2), one.session("s")
    one.task.files.fget(fd).inode.hugetlb.populate(0, POOL + 2)  # type: ignore[attr-defined]
    empty = one.memfd(0)
    one.preserve(session, empty)
    one.task.close(fd)
    assert (one.pool, hstate.surplus_huge_pages) == ((POOL + 2, POOL + 2), 2)
    one.task.close(session)
    assert (one.pool, hstate.surplus_huge_pages) == ((POOL, POOL), 0)


@pytest.mark.parametrize("design", ["subsystem-prepare", "files-then-subsystem"])
def test_a_prepare_after_a_failed_freeze_frees_what_that_one_left(design: str) -> None:
    one = host(design)
    one.preserve(one.session("s"), one.memfd(2))
    assert one.v4 is not None
    kernel, keys = one.kernel, []
    kexec.kexec_file_load(kernel, kernel.release, kernel.params.cmdline)

    def failing(function: str, /, **_: object) -> None:
        if function == "luo_file_freeze":
            raise Busy("injected")

    for _ in range(3):
        one.prepare()
        kernel.fail_function = failing
        with pytest.raises(Busy):
            kexec.kernel_kexec(kernel)
        kernel.fail_function = lambda _function, **_: None
        keys.append(kernel.kho.preserved_keys)
        validate_kernel(kernel, [one.task])
    assert len(set(keys)) == 1
