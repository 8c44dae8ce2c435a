"""What a design is asked, and when: by boot, by both file handlers, by LUO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import pytest

from kernelmodel import hugetlb_designs, kexec
from kernelmodel.abi.folio_table import FolioRun
from kernelmodel.errors import Busy, IoError, NoMemory, NoSpace
from kernelmodel.hugetlb_designs.base import FlbDesign
from kernelmodel.kernel import Kernel
from kernelmodel.memory import MIB
from kernelmodel.mm.guest_memfd import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
)
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB
from kernelmodel.releases import CATALOGUE
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.kernels import CMDLINE, Agent, power_on, reboot

HUGE = 2 * MIB
GUEST = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED | GUEST_MEMFD_FLAG_HUGETLB | 21 << 26


class Recording(FlbDesign):
    """Writes down what it is asked; freezes the pool from the first file to the last."""

    name: ClassVar[str] = "recording"
    log: ClassVar[list[str]] = []
    fail: ClassVar[set[str]] = set()

    def __init__(self, kernel: Kernel, compatible: str) -> None:
        super().__init__(kernel, compatible)
        self.flb.freeze = lambda: self._note("sweep")

    def _note(self, what: str) -> None:
        self.log.append(what)
        if what in self.fail:
            raise NoSpace("recorded")

    def may_add(self, order: int, n: int, *, surplus: bool) -> int:
        return 0

    def may_remove(self, order: int, n: int, *, surplus: bool) -> int:
        if not surplus:
            raise Busy("the pool is frozen", order=order)
        return 0

    def preserve(self) -> tuple[int, object]:
        self._note("first")
        self.kernel.hugetlb.door.keeper = self
        pa = self.kernel.kho.alloc_preserve(8)
        return pa, pa

    def unpreserve(self, data: int, obj: object) -> None:
        self._note("last")
        self.kernel.hugetlb.door.keeper = None
        self.kernel.kho.unpreserve_free(data)

    def retrieve(self, data: int) -> object:
        self._note("look")
        return data

    def finish(self, data: int, obj: object) -> None:
        self._note("done")
        self.kernel.kho.restore_free(data)

    def preserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        self._note(f"preserve {sum(run.nr for run in runs)}")
        super().preserve_folios(order, runs)

    def unpreserve_folios(self, order: int, runs: list[FolioRun]) -> None:
        self._note(f"unpreserve {sum(run.nr for run in runs)}")
        super().unpreserve_folios(order, runs)

    def freeze_folios(self, order: int, runs: list[FolioRun]) -> None:
        self._note(f"freeze {sum(run.nr for run in runs)}")

    def unfreeze_folios(self, order: int, runs: list[FolioRun]) -> None:
        self._note(f"unfreeze {sum(run.nr for run in runs)}")

    def early_boot(self) -> Mapping[int, int]:
        assert self.kernel.page_alloc.nr_free_pages() == 0
        self._note("early_boot")
        return {9: 5} if self.kernel.luo.flbs.incoming_early(self.flb.name) else {}

    def pools_ready(self) -> None:
        self._note(f"pools_ready {self.kernel.hugetlb.hstate(9).nr_huge_pages}")

    def file_incoming(self) -> None:
        self._note("file_incoming")
        super().file_incoming()

    def retrieve_folios(self, order: int, pfn: int, nr: int) -> int:
        self._note(f"retrieve {nr}")
        return super().retrieve_folios(order, pfn, nr)

    def discard_folios(self, order: int, pfn: int, nr: int) -> int:
        self._note(f"discard {nr}")
        return super().discard_folios(order, pfn, nr)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Agent:
    """A host whose release carries the design."""
    monkeypatch.setitem(hugetlb_designs.DESIGNS, "recording", Recording)
    release = replace(
        CATALOGUE["7.3.4+guest-memfd"], name="7.3.4+recording", hugetlb_design="recording"
    )
    monkeypatch.setitem(CATALOGUE, release.name, release)
    Recording.fail.clear()
    agent = Agent(power_on(f"{CMDLINE} hugepages=12", release.name))
    Recording.log.clear()
    return agent


def took() -> list[str]:
    log = Recording.log.copy()
    Recording.log.clear()
    return log


def memfd(agent: Agent, pages: int) -> int:
    fd = agent.task.memfd_create(MFD_HUGETLB | 21 << MFD_HUGE_SHIFT)
    agent.task.ftruncate(fd, pages * HUGE)
    return fd


def test_hooks_are_called_in_order_through_a_whole_update(agent: Agent) -> None:
    session, vm = agent.session("s"), agent.task.kvm_create_vm()
    guest = agent.task.kvm_create_guest_memfd(vm, 2 * HUGE, GUEST)
    agent.task.preserve_fd(session, vm, 1)
    assert took() == []
    agent.task.preserve_fd(session, memfd(agent, 3), 2)
    agent.task.preserve_fd(session, guest, 3)
    assert took() == ["first", "preserve 3", "preserve 2"]
    validate_kernel(agent.kernel, [agent.task])
    fresh = reboot(agent.kernel)
    assert took() == ["freeze 3", "freeze 2", "sweep", "early_boot", "pools_ready 7"]
    after = Agent(fresh)
    session = after.retrieve("s")
    after.task.retrieve_fd(session, 3)
    assert took() == ["file_incoming", "look", "retrieve 2"]
    after.task.finish_session(session)
    assert took() == ["file_incoming", "file_incoming", "discard 3", "done"]
    validate_kernel(fresh, [after.task])


def test_cancelling_ends_what_the_first_file_began(agent: Agent) -> None:
    hstate = agent.kernel.hugetlb.hstate(9)
    hstate.nr_overcommit_huge_pages = 4
    one, two = agent.session("one"), agent.session("two")
    agent.task.preserve_fd(one, memfd(agent, 3), 1)
    agent.task.preserve_fd(two, memfd(agent, 1), 1)
    for wanted in (20, 0):  # one stays without effect, the other is refused
        if wanted < 12:
            with pytest.raises(Busy):
                hstate.set_max_huge_pages(wanted)
        else:
            hstate.set_max_huge_pages(wanted)
        assert hstate.nr_huge_pages == 12
    with pytest.raises(NoMemory):
        hstate.reserve(9)
    took()
    agent.task.close(one)
    assert took() == ["unpreserve 3"]
    agent.task.close(two)
    assert took() == ["unpreserve 1", "last"]
    hstate.set_max_huge_pages(14)
    assert hstate.nr_huge_pages == 14
    validate_kernel(agent.kernel, [agent.task])


def test_a_refusal_undoes_the_preserve(agent: Agent) -> None:
    Recording.fail.add("preserve 3")
    session, fd = agent.session("s"), memfd(agent, 3)
    keys = agent.kernel.kho.preserved_keys
    with pytest.raises(NoSpace):
        agent.task.preserve_fd(session, fd, 1)
    assert took() == ["first", "preserve 3", "last"]
    assert agent.kernel.hugetlb.door.keeper is None
    assert agent.kernel.kho.preserved_keys == keys
    validate_kernel(agent.kernel, [agent.task])


def test_a_freeze_that_fails_is_undone_file_by_file(agent: Agent) -> None:
    session = agent.session("s")
    for token, pages in ((1, 1), (2, 2), (3, 3)):
        agent.task.preserve_fd(session, memfd(agent, pages), token)
    took()
    Recording.fail.add("freeze 3")
    kexec.kexec_file_load(agent.kernel, agent.kernel.release, agent.kernel.params.cmdline)
    with pytest.raises(NoSpace):
        kexec.kernel_kexec(agent.kernel)
    assert took() == ["freeze 1", "freeze 2", "freeze 3", "unfreeze 1", "unfreeze 2"]
    agent.task.close(session)
    assert took() == ["unpreserve 3", "unpreserve 2", "unpreserve 1", "last"]
    validate_kernel(agent.kernel, [agent.task])


def test_a_design_that_cannot_look_fails_the_retrieve_and_warns_at_finish(agent: Agent) -> None:
    agent.task.preserve_fd(agent.session("s"), memfd(agent, 5), 1)
    fresh = reboot(agent.kernel)
    after = Agent(fresh)
    session = after.retrieve("s")
    Recording.fail.add("file_incoming")
    for _ in range(2):
        with pytest.raises(NoSpace):
            after.task.retrieve_fd(session, 1)
    after.task.close(session)
    assert fresh.tainted
    assert not any(line.startswith("retrieve") for line in took())


def test_a_release_without_the_design_knows_nothing_of_it(agent: Agent) -> None:
    agent.task.preserve_fd(agent.session("s"), memfd(agent, 5), 1)
    took()
    fresh = reboot(agent.kernel, "7.3.4")
    assert took() == ["freeze 5", "sweep"]
    assert fresh.hugetlb.hstate(9).nr_huge_pages == 12
    with pytest.raises(IoError):
        Agent(fresh)
