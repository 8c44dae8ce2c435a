"""What is said of a step beforehand is what becomes of a host that takes it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from fleet.upgrade_path import Verdict, best_path, cold_steps, judge, judge_path
from kernelmodel.memory import GIB, MIB
from kernelmodel.releases import CATALOGUE, Release, catalogue_with
from kernelmodel.sim.cost import CostModel
from node.api import (
    Backing,
    HostOutcome,
    HostSpec,
    HugepagePool,
    UpdateCommand,
    UpdatePolicy,
    UpdateResult,
    VmOutcome,
    VmSpec,
)
from node.host import Host
from node.live_update import update_host
from node.vm import VmState

PLAIN, HUGE = CATALOGUE["7.3.4"], CATALOGUE["7.3.4+hugetlb"]
OWN = (
    replace(PLAIN, name="newer-kho", kho="kho-v5"),
    replace(PLAIN, name="newer-luo", luo="luo-v6"),
    replace(PLAIN, name="newer-memfd", memfd="memfd-v3"),
    replace(PLAIN, name="no-memfd", memfd=None),
    replace(PLAIN, name="no-kho", kho=None, luo=None, memfd=None),
    replace(PLAIN, name="not-relocatable", relocatable=False),
    replace(HUGE, name="newer-hugemfd", hugemfd="huge-memfd-v2"),
    replace(HUGE, name="newer-hugetlb", hugetlb="hugetlb-v2"),
)
#: A host with the LUO of September 2025 is updated by other calls. Of the releases that differ in
#: what hugetlb memfds share, `newer-hugetlb` is enough: pairs are many.
KNOWN = {
    name: release
    for name, release in catalogue_with(OWN).items()
    if release.luo_design == "sessions" and release.hugetlb_design in {None, "flb-counts"}
}
COST = CostModel.load()
SIZES = {Backing.MEMFD: 16 * MIB, Backing.HUGETLB_2M: 16 * MIB, Backing.HUGETLB_1G: GIB}
BACKINGS = [
    (),
    (Backing.MEMFD,),
    (Backing.HUGETLB_2M,),
    (Backing.MEMFD, Backing.HUGETLB_2M, Backing.HUGETLB_1G),
]


def update(at: str, to: str, backings: tuple[Backing, ...]) -> tuple[Host, UpdateResult]:
    """A host with a VM of each backing, updated."""
    pools = (HugepagePool(GIB, 1), HugepagePool(2 * MIB, 16))
    host = Host(
        HostSpec("h", {"rack": "r"}, (4 * GIB,), 2, at, pools, "kho_scratch=256M,256M,128M"),
        [VmSpec(backing, "h", SIZES[backing], backing, 1) for backing in backings],
        seed=1,
        cost=COST,
        releases=KNOWN,
    )
    return host, update_host(host, UpdateCommand("h", 1, 10**9, to, UpdatePolicy()))


def happened(host: Host, result: UpdateResult) -> Verdict | None:
    """The verdict that an update amounts to; None if it is none of them."""
    lost = {vm.name for vm in result.vms if vm.outcome is VmOutcome.LOST}
    match result.outcome, result.reason:
        case HostOutcome.UPDATED, "":
            return Verdict.LIVE
        case HostOutcome.FAILED, "not-ready" | "kexec-load-failed" | "preserve-failed":
            assert not lost
            return Verdict.COLD
        case HostOutcome.ROLLED_BACK, "panic":
            assert {vm.outcome for vm in result.vms} <= {VmOutcome.RESTARTED}
            return Verdict.PANICS
        case HostOutcome.UPDATED, "vm-lost" if host.agent_error.endswith("EIO"):
            assert lost == set(host.vms)
            return Verdict.EIO
        case HostOutcome.UPDATED, "vm-lost":
            return Verdict.LOSES_MEMORY
    return None


@pytest.mark.parametrize("backings", BACKINGS, ids=lambda backings: "+".join(backings) or "no VMs")
def test_every_verdict_is_what_happens(backings: tuple[Backing, ...]) -> None:
    wrong = {}
    for at, to in itertools.product(KNOWN, repeat=2):
        step = judge(KNOWN[at], KNOWN[to], backings)
        host, result = update(at, to, backings)
        # What EIO leaves reserved may be missing when a VM is to start again.
        again = all(
            host.vm(vm.name).state is VmState.RUNNING or "cannot start again: ENOMEM" in vm.reason
            for vm in result.vms
        )
        if happened(host, result) is not step.verdict or not again:
            wrong[at, to] = (step, result.outcome, result.reason, result.detail)
    assert not wrong


def test_every_verdict_is_reached() -> None:
    verdicts = {
        judge(KNOWN[at], KNOWN[to], backings).verdict
        for at, to in itertools.product(KNOWN, repeat=2)
        for backings in BACKINGS
    }
    assert verdicts == set(Verdict)


STEPS = [
    # from, to, backing, verdict, what the reason names
    ("6.16", "6.19", Backing.MEMFD, Verdict.COLD, "6.16 has no LUO"),
    ("6.19", "6.16", Backing.MEMFD, Verdict.LOSES_MEMORY, "6.16 has no LUO"),
    ("6.19", "7.2.13", Backing.MEMFD, Verdict.LOSES_MEMORY, "kho-v1, 7.2.13 reads kho-v4"),
    ("7.3.4", "newer-luo", Backing.MEMFD, Verdict.PANICS, "luo-v5, newer-luo wants luo-v6"),
    ("7.3.4", "no-memfd", Backing.MEMFD, Verdict.EIO, "memfd-v2, no-memfd has none"),
    ("no-memfd", "7.3.4", Backing.MEMFD, Verdict.COLD, "no handler for plain memfds"),
    ("7.3.4+hugetlb", "7.3.4", Backing.HUGETLB_1G, Verdict.EIO, "huge-memfd-v1, 7.3.4 has none"),
    ("7.3.4", "7.3.4+hugetlb", Backing.HUGETLB_1G, Verdict.COLD, "no handler for hugetlb memfds"),
    ("7.3.4+hugetlb", "7.3.4", Backing.MEMFD, Verdict.LIVE, "kho-v4, luo-v5, memfd-v2"),
    ("7.2.13", "7.3.4+hugetlb", Backing.MEMFD, Verdict.LIVE, "kho-v4, luo-v5, memfd-v2"),
    ("7.3.4", "7.2.13", Backing.MEMFD, Verdict.LIVE, "kho-v4, luo-v5, memfd-v2"),
    ("7.3.4", "not-relocatable", Backing.MEMFD, Verdict.COLD, "ENOEXEC"),
]


@pytest.mark.parametrize(("at", "to", "backing", "verdict", "said"), STEPS)
def test_a_step_says_why(at: str, to: str, backing: Backing, verdict: Verdict, said: str) -> None:
    step = judge(KNOWN[at], KNOWN[to], (backing,))
    assert step.verdict is verdict
    assert said in step.reason


def test_two_designs_of_luo_do_not_understand_each_other_whatever_they_are_called() -> None:
    v4 = replace(PLAIN, name="v4", luo_design="v4")
    assert judge(PLAIN, v4).verdict is judge(v4, PLAIN).verdict is Verdict.PANICS


def test_a_path_is_judged_step_by_step() -> None:
    path = judge_path(["6.19", "7.2.13", "7.3.4"], KNOWN, [Backing.MEMFD])
    assert [step.verdict for step in path] == [Verdict.LOSES_MEMORY, Verdict.LIVE]
    assert cold_steps(path) == 1


@pytest.mark.parametrize(
    ("start", "goal", "names", "cold"),
    [
        ("7.2.13", "7.3.4", ["7.3.4"], 0),
        ("6.19", "7.3.4", ["7.3.4"], 1),
        ("7.3.4", "7.3.4", [], 0),
        ("7.3.4", "not-relocatable", ["not-relocatable"], 1),
    ],
)
def test_the_best_path_has_few_cold_steps_and_no_detour(
    start: str, goal: str, names: list[str], cold: int
) -> None:
    path = best_path(start, goal, KNOWN, [Backing.MEMFD])
    assert [step.to for step in path] == names
    assert cold_steps(path) == cold


def test_no_other_path_has_fewer_cold_steps() -> None:
    few = {name: KNOWN[name] for name in ("6.19", "7.2.13", "7.3.4", "newer-luo", "no-memfd")}
    for start, goal in itertools.permutations(few, 2):
        best = best_path(start, goal, few, [Backing.MEMFD])
        for length in range(len(few) - 1):
            for between in itertools.permutations(
                [n for n in few if n not in (start, goal)], length
            ):
                other = judge_path([start, *between, goal], few, [Backing.MEMFD])
                assert (cold_steps(best), len(best)) <= (cold_steps(other), len(other))


def test_a_release_is_itself_again_out_of_its_image() -> None:
    for release in KNOWN.values():
        assert Release.unpack(release.pack()) == release
