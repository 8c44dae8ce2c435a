"""Faults: what each kind does, how often, and which are refused."""

from __future__ import annotations

import pytest

from kernelmodel.abi.folio_runs import single_folio_runs
from kernelmodel.errors import Busy, IoError, KernelError, KernelPanic, ModelBug, NoSpace
from kernelmodel.memory import PAGE_SHIFT
from node.api import FaultSpec, VmOutcome
from node.faults import (
    FAULT_KINDS,
    BootHang,
    Faults,
    corrupt_folio_entry,
    drop_preserved_page,
    strike_memory,
    why_wrong,
)
from node.host_state import HostStateError
from tests.node.tampering import preserved_files
from tests.node.update_hosts import HOST, VMS, fault, make_host, outcomes, update

#: fault, what is said to it
WRONG = [
    (FaultSpec(HOST, "rust"), "no fault 'rust'; there are: slow-boot, freeze-fails"),
    (FaultSpec(HOST, "freeze-fails", times=-1), "times is -1, should be a count"),
    (FaultSpec(HOST, "freeze-fails", errno="EFOO"), "errno is 'EFOO', should be one of EPERM"),
    (FaultSpec(HOST, "slow-boot", factor=0), "factor is 0, should be above 0"),
    (FaultSpec(HOST, "slow-boot", factor=-2.5), "factor is -2.5"),
    (FaultSpec(HOST, "slow-boot", factor=float("nan")), "factor is nan"),
    (FaultSpec(HOST, "slow-boot", factor=1e9), "factor is 1e+09"),
]


@pytest.mark.parametrize(("spec", "said"), WRONG)
def test_a_fault_that_makes_no_sense_is_refused(spec: FaultSpec, said: str) -> None:
    assert said in why_wrong(spec)
    with pytest.raises(ModelBug, match="h: "):
        Faults([spec])
    host = make_host(vms=())
    with pytest.raises(HostStateError) as refused:
        host.inject(spec)
    assert refused.value.reason == ("BAD_FAULT" if spec.kind in FAULT_KINDS else "NO_SUCH_FAULT")
    assert said in str(refused.value)


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_every_kind_is_accepted_and_changes_an_update(kind: str) -> None:
    spec = fault(kind, factor=3.0)
    assert why_wrong(spec) == ""
    quiet, struck = update(make_host()), update(make_host(spec))
    assert struck.digest != quiet.digest
    assert (struck.reason, struck.phases_ns) != (quiet.reason, quiet.phases_ns)


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_a_fault_that_is_injected_is_as_good_as_one_from_the_start(kind: str) -> None:
    spec = fault(kind, factor=3.0)
    host = make_host()
    host.inject(spec)
    injected, given = update(host), update(make_host(spec))
    assert (injected.outcome, injected.reason) == (given.outcome, given.reason)
    assert (injected.vms, injected.phases_ns) == (given.vms, given.phases_ns)


def test_rules_strike_in_their_order_each_as_often_as_it_says() -> None:
    one, two, ever = (
        fault("slow-boot", times=times, factor=factor)
        for times, factor in ((1, 2.0), (2, 3.0), (0, 4.0))
    )
    rules = Faults([one, two, ever])
    assert [rules.strike("slow-boot") for _ in range(6)] == [one, two, two, ever, ever, ever]
    assert rules.strike("boot-hangs") is None


def test_all_rules_of_a_kind_strike_in_turn() -> None:
    one, two, ever = (fault("slow-boot", times=times) for times in (1, 2, 0))
    rules = Faults([one, two, ever])
    assert list(rules.strikes("slow-boot")) == [one, two, ever]
    assert list(rules.strikes("slow-boot")) == [two, ever]
    assert list(rules.strikes("slow-boot")) == [ever]


#: function, kind, errno given, what is raised
AT = [
    ("luo_file_freeze", "freeze-fails", "", Busy),
    ("luo_file_freeze", "freeze-fails", "EIO", IoError),
    ("kexec_file_load", "kexec-load-fails", "", KernelError),
    ("kexec_file_load", "kexec-load-fails", "ENOSPC", NoSpace),
    ("start_kernel", "next-kernel-panics", "", KernelPanic),
    ("start_kernel", "boot-hangs", "", BootHang),
]


@pytest.mark.parametrize(("function", "kind", "errno", "error"), AT)
def test_a_kind_strikes_at_its_function_and_at_no_other(
    function: str, kind: str, errno: str, error: type[Exception]
) -> None:
    rules = Faults([FaultSpec(HOST, kind, errno=errno)])
    for other in {name for name, *_ in AT} - {function}:
        rules.fail_function(other)
    rules.fail_function("luo_retrieve_file", token=1)
    with pytest.raises(error, match="injected"):
        rules.fail_function(function)
    rules.fail_function(function)  # used up


def test_an_errno_is_the_one_that_the_result_tells() -> None:
    result = update(make_host(FaultSpec(HOST, "kexec-load-fails", errno="ENOSPC")))
    assert result.detail.startswith("ENOSPC: injected")


@pytest.mark.parametrize("kind", ["drop-preserved-page", "corrupt-folio-entry"])
@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_memory_is_hit_once_a_jump_however_often_it_may_be(kind: str, times: int) -> None:
    """Two flips of one bit would undo each other."""
    host = make_host(fault(kind, times=times, vm="huge"))
    for seq in range(4):
        hit = times == 0 or seq < times
        result = update(host, seq=seq)
        expected = VmOutcome.LOST if hit else VmOutcome.PRESERVED
        assert outcomes(result)["huge"] is expected, seq


def test_the_middle_page_is_dropped_and_the_first_entry_corrupted() -> None:
    host = make_host()
    for vm in VMS:
        host.preserve_vm(vm.name)
    kernel, tree = host.kernel, host.kernel.kho.outgoing_tree
    assert tree is not None
    for _, luo_file, folios in preserved_files(kernel):
        before = kernel.kho.preserved_keys, list(tree.runs())
        drop_preserved_page(kernel, luo_file)
        runs = list(single_folio_runs(folios.runs))
        run = runs[len(runs) // 2]
        dropped = run.pfn + (run.nr // 2 << folios.order)
        assert not tree.has(dropped, folios.order)
        assert sum(run.nr for run in tree.runs()) == sum(run.nr for run in before[1]) - 1

        assert folios.table is not None
        entry_pa = folios.table.extents[0][0] << PAGE_SHIFT
        entry = kernel.memory.u64(entry_pa)
        corrupt_folio_entry(kernel, luo_file)
        assert kernel.memory.u64(entry_pa) ^ entry == 1 << folios.order


def test_memory_faults_that_find_nothing_preserved_hit_nobody() -> None:
    host = make_host(vms=())
    rules = Faults([fault("drop-preserved-page"), fault("corrupt-folio-entry", vm="huge")])
    before = host.kernel.kho.handover_digest()
    strike_memory(rules, host.kernel)
    assert host.kernel.kho.handover_digest() == before


def test_a_slow_boot_is_exactly_as_much_slower_and_leaves_the_rest_alone() -> None:
    quick, slow = update(make_host()), update(make_host(fault("slow-boot", factor=3.0)))
    for phase in ("kexec", "kho", "hugetlb", "memmap", "init", "userspace"):
        ratio = slow.phases_ns[phase] / quick.phases_ns[phase]
        assert abs(ratio - 3) < 0.01, phase
    for phase in ("freeze", "retrieve"):
        assert slow.phases_ns[phase] == quick.phases_ns[phase]
    assert slow.outside_ns == quick.outside_ns


def test_a_slow_boot_is_over_with_the_boot() -> None:
    host = make_host(fault("slow-boot", factor=3.0))
    slow, after = update(host), update(host, seq=1)
    assert after.phases_ns["kexec"] * 3 == slow.phases_ns["kexec"]


def test_a_boot_hardly_slower_is_still_a_boot() -> None:
    assert update(make_host(fault("slow-boot", factor=0.0001))).reason == ""
