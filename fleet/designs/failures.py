"""What becomes of pages and VMs when an update under a design does not go as planned.

Each case is a host of its own, small and of the same proportions as the one that was asked for.
Lost pages are those of the VM that met the failure which are neither in use nor free in their pool
when everything else is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fleet.designs.host import DesignHost, DesignVm
from fleet.designs.measure import keeper_since, page_label
from fleet.designs.spec import HostSpec, small
from kernelmodel.errors import KernelError, KernelPanic, NoMemory
from kernelmodel.kernel import no_failures
from kernelmodel.sim.cost import CostModel

__all__ = ["CHAIN", "Failures", "fail"]

#: Updates in a row.
CHAIN: Final = 10


@dataclass(slots=True)
class Failures:
    """Every case. Pages are those of the VM at stake, which has `vm_pages` of them.

    `vm_pages` is 0 if the design cannot preserve that VM: its cases were not played then.

    `cancel_leaks` are 4 KiB pages and keys that are not as they were after preserve and cancel.
    `file_fails` says who cannot be updated if one file cannot be preserved, `freeze_fails` what a
    failed freeze leaves behind when all sessions are closed, "" for nothing. `resized` is by how
    many pages the pool of the smallest size was grown at run time, and how many of them the next
    kernel has, `shrunk` by how many it was made smaller, and how many of them the next kernel does
    without. `drift` is the change of each pool over ten updates, `drift_memory` that of free
    memory, in bytes, from the first of them to the tenth.
    """

    design: str
    vm_pages: int = 0
    cancel_leaks: int = 0
    file_fails: str = ""
    freeze_fails: str = ""
    never_retrieved: int = 0
    file_not_retrieved: int = 0
    retrieve_failed: int = 0
    resized: tuple[int, int] = (0, 0)
    shrunk: tuple[int, int] = (0, 0)
    drift: dict[str, int] = field(default_factory=dict)
    drift_memory: int = 0
    chain: int = 0  # updates that went through
    chain_lost: int = 0  # VMs that did not come back in one of them


def fail(spec: HostSpec, design: str, cost: CostModel) -> Failures:
    """All cases of one design."""
    on = small(spec)

    def power_on() -> DesignHost:
        return DesignHost(on, design, cost)

    found = Failures(design)
    host = power_on()
    victim = _victim(host)
    found.cancel_leaks = _cancel(host)
    if victim.spec.name not in host.refused:
        found.vm_pages = victim.spec.pages
        found.file_fails = _file_fails(power_on())
        found.freeze_fails = _freeze_fails(power_on())
        free = _free_after(power_on(), DesignHost.retrieve_vm)
        for case, act in (
            ("never_retrieved", _ignore_session),
            ("file_not_retrieved", _ignore_file),
            ("retrieve_failed", _break_retrieve),
        ):
            back = _free_after(power_on(), act) - free
            setattr(found, case, found.vm_pages - back)
    found.resized = _resized(power_on(), power_on(), 1)
    found.shrunk = _resized(power_on(), power_on(), -1)
    _chain(power_on(), found)
    return found


def _victim(host: DesignHost) -> DesignVm:
    """The VM to which things happen: of those on memfds, if any, the last on the largest pages."""
    vms = [vm for vm in host.vms.values() if not vm.spec.guest_memfd] or list(host.vms.values())
    largest = max(vm.spec.order for vm in vms)
    return [vm for vm in vms if vm.spec.order == largest][-1]


@dataclass(frozen=True, slots=True)
class _Books:
    """What must be the same again when everything is undone."""

    pools: tuple[tuple[int, int, int], ...]
    free_pages: int
    keys: int
    frozen: bool

    @classmethod
    def of(cls, host: DesignHost) -> _Books:
        kernel = host.kernel
        return cls(
            tuple(
                (h.nr_huge_pages << o, h.free_huge_pages << o, h.surplus_huge_pages << o)
                for o, h in kernel.hugetlb.hstates.items()
            ),
            kernel.page_alloc.nr_free_pages(),
            kernel.kho.preserved_keys,
            keeper_since(host) is not None,
        )

    def differ(self, other: _Books) -> int:
        """By how many 4 KiB pages and keys."""
        pools = zip(self.pools, other.pools, strict=True)
        return (
            sum(abs(x - y) for mine, theirs in pools for x, y in zip(mine, theirs, strict=True))
            + abs(self.free_pages - other.free_pages)
            + abs(self.keys - other.keys)
        )


def _warm_up(host: DesignHost) -> None:
    """Preserve and cancel once: nodes of KHO's tree stay, and shall count as no leak."""
    host.preserve()
    host.settle()
    host.give_up()
    host.refused.clear()


def _cancel(host: DesignHost) -> int:
    _warm_up(host)
    before = _Books.of(host)
    host.preserve()
    host.settle()
    host.give_up()
    return before.differ(_Books.of(host))


def _file_fails(host: DesignHost) -> str:
    """Memory runs out while one VM's file is written down; who is without, and is it undone?"""
    victim = _victim(host)
    _warm_up(host)
    before = _Books.of(host)
    for vm in host.vms.values():
        at_stake = vm is victim and host.design.at_preserve_fd | (host.kernel.luo_v4 is None)
        host.kernel.fail_function = _fails("kho_preserve_vmalloc") if at_stake else no_failures
        host.preserve_vm(vm)
    host.kernel.fail_function = no_failures
    held_up = list(host.refused.values()).count("ENOMEM")
    said = "one VM" if held_up == 1 else f"{held_up} VMs" if held_up else ""
    if not said:
        nth = [vm for vm in host.vms.values() if vm.spec.name not in host.refused].index(victim)
        host.kernel.fail_function = _fails("kho_preserve_vmalloc", nth)
        try:
            host.settle()
        except NoMemory:
            said = "whole update"
        host.kernel.fail_function = no_failures
    host.agent.give_up()
    return said if _Books.of(host) == before else f"{said}, and leaks"


def _freeze_fails(host: DesignHost) -> str:
    """One file's freeze fails, and the reboot with it; the agent closes all. What is left?"""
    _warm_up(host)
    before = _Books.of(host)
    host.load()
    host.preserve()
    host.settle()
    preserved = len(host.vms) - len(host.refused)
    host.kernel.fail_function = _fails("luo_file_freeze", preserved // 2)
    try:
        host.freeze()
    except KernelError:
        pass
    else:
        return "the freeze did not fail"
    host.kernel.fail_function = no_failures
    host.agent.give_up()
    frozen = keeper_since(host) is not None
    kept = "list kept" if host.design.shared_bytes else "LUO's page kept"
    what = "pools frozen" if frozen else kept if _Books.of(host) != before else ""
    if not what:
        return ""
    _warm_up(host)
    return f"{what} until the next PREPARE" if _Books.of(host) == before else f"{what} for good"


def _fails(function: str, after: int = 0) -> Callable[..., None]:
    """Out of memory in this function, once `after` calls of it went well, and then no more."""
    calls = 0

    def injected(called: str, /, **_context: object) -> None:
        nonlocal calls
        if called == function:
            calls += 1
            if calls == after + 1:
                raise NoMemory("injected")

    return injected


def _free_after(host: DesignHost, act: Callable[[DesignHost, DesignVm], None]) -> int:
    """Free pages of the victim's size when all is finished; `act` sees to the victim itself."""
    victim = _victim(host)
    host.load()
    host.preserve()
    host.settle()
    try:
        host.jump(host.freeze())
    except (KernelPanic, KernelError):  # as `measure` tells
        return 0
    host.retrieve(without=frozenset({victim.spec.name}))
    act(host, victim)
    host.finish()
    return host.kernel.hugetlb.hstate(victim.spec.order).free_huge_pages


def _ignore_session(_host: DesignHost, _vm: DesignVm) -> None:
    """Nobody asks for it."""


def _ignore_file(host: DesignHost, vm: DesignVm) -> None:
    """Somebody asks for the session and finishes it."""
    host.agent.retrieve_session(vm.spec.name)


def _break_retrieve(host: DesignHost, vm: DesignVm) -> None:
    """The file is asked for, and cannot be made again."""
    host.kernel.fail_function = _fails("hugetlb_retrieve_folios")
    host.retrieve_vm(vm)
    host.kernel.fail_function = no_failures


def _resized(host: DesignHost, plain: DesignHost, way: int) -> tuple[int, int]:
    """A pool gets more pages at run time, or fewer; how much of that has the next kernel?

    `way` is 1 or -1. `plain` is a host like the other, updated without that: what it has is no
    result of resizing.
    """
    order = min(host.asked())
    hstate = host.kernel.hugetlb.hstate(order)
    before = hstate.nr_huge_pages
    hstate.set_max_huge_pages(before + way * max(1, before // 50))
    changed = (hstate.nr_huge_pages - before) * way
    try:
        host.update()
        plain.update()
    except (KernelPanic, KernelError):
        return changed, 0
    kept = (host.pools()[order] - plain.pools()[order]) * way
    return changed, max(0, min(changed, kept))


def _chain(host: DesignHost, found: Failures) -> None:
    before = host.pools()
    first = 0
    try:
        for nr in range(CHAIN):
            host.update()
            found.chain = nr + 1
            found.chain_lost = len(host.lost)
            if nr == 0:
                first = host.kernel.page_alloc.nr_free_pages()
    except (KernelPanic, KernelError):
        return
    after = host.pools()
    found.drift = {page_label(o): after[o] - n for o, n in before.items() if after[o] != n}
    found.drift_memory = (host.kernel.page_alloc.nr_free_pages() - first) << 12
