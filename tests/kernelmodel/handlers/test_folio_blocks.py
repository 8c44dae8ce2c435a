"""Folio tables of files that lie in pieces: what the next kernel makes of one is in its bytes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from kernelmodel import kexec
from kernelmodel.abi.folio_runs import FolioRun
from kernelmodel.boot import boot
from kernelmodel.handlers.folio_table import folio_heads
from kernelmodel.kernel import Kernel
from kernelmodel.machine import Firmware, Machine
from kernelmodel.memory import MIB, PAGE_SIZE, PhysicalMemory
from kernelmodel.mm.memfd import MFD_HUGE_SHIFT, MFD_HUGETLB
from kernelmodel.releases import Release
from kernelmodel.sim.clock import Clock
from kernelmodel.sim.cost import CostModel
from tests.kernelmodel.kernels import CMDLINE, CONFIG, Agent, power_on

HUGE = MFD_HUGETLB | 21 << MFD_HUGE_SHIFT
PUNCH = 3
SMALL, LARGE = range(3), 9


def in_crumbs(pages: int, seed: int) -> Agent:
    """On a host that has been used: memory comes in pieces of a page or a few."""
    agent = Agent(power_on(f"{CMDLINE} hugepages=10", "7.3.4+hugetlb"))
    task, rng = agent.task, Random(seed)
    hog = agent.memfd(pages * PAGE_SIZE)
    task.fallocate(hog, 0, 0, pages * PAGE_SIZE)
    for page in range(pages):
        if rng.randrange(2):
            task.fallocate(hog, PUNCH, page * PAGE_SIZE, PAGE_SIZE)
    session = agent.session("s")
    for token in SMALL:
        # filled here and there before it is preserved, which fills the rest
        fd = agent.memfd(pages // 4 * PAGE_SIZE)
        for _ in range(3):
            task.pwrite(fd, bytes(5 * PAGE_SIZE), rng.randrange(pages // 5) * PAGE_SIZE)
        task.preserve_fd(session, fd, token)
    others = [agent.memfd(2 * MIB, flags=HUGE) for _ in range(8)]
    for fd in others:
        task.fallocate(fd, 0, 0, 2 * MIB)
    for fd in rng.sample(others, 4):
        task.close(fd)
    fd = agent.memfd(8 * MIB, flags=HUGE)
    task.fallocate(fd, 0, 0, 8 * MIB)
    task.preserve_fd(session, fd, LARGE)
    return agent


def times(kernel: Kernel, memory: PhysicalMemory, given: tuple[Release, Firmware]) -> object:
    """The instants at which the next kernel is up, has each file and has finished."""
    machine = Machine(kernel.machine.spec)
    machine.memory = memory
    clock = Clock(CostModel.load(), 2, 0)
    agent = Agent(boot(machine, *given, clock, config=CONFIG))
    session, seen = agent.retrieve("s"), [clock.now_ns]
    for token in (SMALL[0], LARGE):
        agent.task.retrieve_fd(session, token)
        seen.append(clock.now_ns)
    agent.task.close(session)  # which frees what was not retrieved
    return [*seen, clock.now_ns, agent.kernel.page_alloc.buddyinfo()]


@pytest.mark.parametrize("pages", [300, 3000])  # the latter in too many pieces for single runs
@pytest.mark.parametrize("seed", range(3))
def test_how_memory_holds_a_table_costs_no_time(tmp_path: Path, pages: int, seed: int) -> None:
    kernel = in_crumbs(pages, seed).kernel
    kexec.kexec_file_load(kernel, kernel.release, kernel.params.cmdline)
    given = kexec.jump(kernel, kexec.kernel_kexec(kernel))
    kernel.memory.save(tmp_path / "memory")
    plain = PhysicalMemory.load(tmp_path / "memory", given[1].memory_map)
    assert times(kernel, plain, given) == times(kernel, kernel.memory, given)


def entries(*places: tuple[int, int]) -> list[FolioRun]:
    return [FolioRun(pfn, index, 1, 0, 0) for index, pfn in places]


@pytest.mark.parametrize(
    "runs",
    [
        [FolioRun(7, 0, 2, 2, 1), FolioRun(10, 2, 3, 1, 1)],  # 7, 9 and 10, 11, 12
        [FolioRun(7, 0, 1, 0, 0), FolioRun(9, 1, 4, 1, 1)],
        entries((0, 7), (1, 9), (2, 10), (3, 11), (4, 12)),
    ],
)
def test_the_same_entries_make_the_same_blocks(runs: list[FolioRun]) -> None:
    blocks = [(run.pfn, run.index, run.nr) for run in folio_heads(runs, 1)]
    assert blocks == [(7, 0, 1), (9, 1, 4)]


def test_page_frame_0_goes_on_with_nothing() -> None:
    blocks = folio_heads([FolioRun(0, 0, 3, 1, 1)], 1)
    assert [(run.pfn, run.nr) for run in blocks] == [(0, 1), (1, 2)]
