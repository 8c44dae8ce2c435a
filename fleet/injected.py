"""The faults that a scenario injects, `[[faults]]`: each kind has its own keys.

A fault strikes the host that it names, or with a `rate` each host by chance. Whether it strikes a
host depends on the seed, the kind and the host alone: a higher rate strikes the same hosts and some
more, so that runs which differ in a rate differ by that and not by their luck.

A fault on a host that is not there, or with a key that its kind would not look at, would never
strike, and the run would look better than it should. Both are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from fleet.bad_input import Faults, did_you_mean
from fleet.fields import Fields
from fleet.inventory import Inventory
from fleet.units import Unfit, shown
from kernelmodel.errors import ERRNO_CLASSES
from kernelmodel.sim.rng import draw, stream_key
from node.api import FaultSpec
from node.faults import FAULT_KINDS, LARGEST_FACTOR

__all__ = ["read_faults"]

_OF_SOME_KINDS: Final = ("vm", "factor", "errno")
_MOST_TIMES: Final = 1_000_000
_HINTS_UP_TO: Final = 5_000
#: A rate of 1, in the resolution of its draws.
_CERTAIN: Final = 1 << 32


def read_faults(
    root: Fields, inventory: Inventory, seed: int, faults: Faults
) -> tuple[FaultSpec, ...]:
    """Read every `[[faults]]`, against the hosts and VMs of the inventory."""
    found: list[FaultSpec] = []
    of_kind: Counter[str] = Counter()
    for fields in root.tables("faults"):
        before = len(faults)
        kind = fields.text("kind", None, FAULT_KINDS, "kinds")
        looks_at = FAULT_KINDS.get(kind, frozenset())
        by_chance = fields.given("rate")
        rate = fields.parsed("rate", _parse_rate, 0.0, "") if by_chance else 0.0
        vm = _read_vm(fields, inventory) if "vm" in looks_at and not by_chance else ""
        spec = FaultSpec(
            host="" if by_chance else _read_host(fields, inventory, vm),
            kind=kind,
            times=fields.integer("times", 1, 0, _MOST_TIMES),
            vm=vm,
            factor=_read_factor(fields) if "factor" in looks_at else 1.0,
            errno=_read_errno(fields) if "errno" in looks_at else "",
        )
        for key in _OF_SOME_KINDS:
            # An unknown kind is not blamed for keys that the meant one may have.
            if fields.given(key) and key not in looks_at and kind in FAULT_KINDS:
                fields.complain(key, f"a {kind} fault has none", "leave it out")
        for key in ("host", "vm") if by_chance else ():
            if fields.given(key):
                fields.complain(
                    key, "a fault with a rate strikes any host", "leave one of them out"
                )
        fields.close()
        if len(faults) > before:
            continue
        if by_chance:
            luck = stream_key(seed, "faults", kind, of_kind[kind])
            of_kind[kind] += 1
            found += _struck(spec, rate, luck, inventory, needs_vm="vm" in looks_at)
        else:
            found.append(spec)
    return tuple(found)


def _parse_rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Unfit(f"{shown(value)} is no probability", "0 to 1")
    return float(value)


def _struck(
    spec: FaultSpec, rate: float, luck: bytes, inventory: Inventory, *, needs_vm: bool
) -> Iterator[FaultSpec]:
    """The fault on every host that it strikes by chance, and on one of its VMs if it needs one."""
    bound = round(rate * _CERTAIN)
    vms: dict[str, list[str]] = {}
    for vm in inventory.vms.values() if needs_vm else ():
        vms.setdefault(vm.host, []).append(vm.name)
    for host in inventory.hosts:
        if draw(luck, host, 0, _CERTAIN) < bound:
            if not needs_vm:
                yield replace(spec, host=host)
            elif host in vms:
                vm_name = vms[host][draw(luck, host, 1, len(vms[host]))]
                yield replace(spec, host=host, vm=vm_name)


def _read_factor(fields: Fields) -> float:
    return fields.number("factor", None, above=0.0, at_most=LARGEST_FACTOR)


def _read_errno(fields: Fields) -> str:
    """An errno by its symbol; without one the kind has its own."""
    return fields.text("errno", "", sorted(ERRNO_CLASSES), "errnos")


def _read_host(fields: Fields, inventory: Inventory, vm: str) -> str:
    """The host to strike; a fault that names a VM need not name its host."""
    spec = inventory.vms.get(vm)
    if spec is not None and not fields.given("host"):
        return spec.host
    if vm and not fields.given("host"):
        return ""
    host = fields.text("host")
    if not fields.given("host") or not inventory.host_places:
        return host
    if host not in inventory.host_places:
        if not inventory.all_named:
            return host
        names = list(inventory.host_places) if len(inventory.host_places) <= _HINTS_UP_TO else []
        right = did_you_mean(host, names, noun="hosts") if names else "a host of the fleet"
        fields.complain("host", f"there is no host {shown(host)}", right)
    elif spec is not None and spec.host != host:
        fields.complain("host", f"VM {vm} is not on {host}", f'"{spec.host}", or leave it out')
    return host


def _read_vm(fields: Fields, inventory: Inventory) -> str:
    vm = fields.text("vm")
    known = inventory.vm_places
    if fields.given("vm") and known and inventory.all_named and vm not in known:
        names = list(inventory.vm_places) if len(inventory.vm_places) <= _HINTS_UP_TO else []
        right = did_you_mean(vm, names, noun="VMs") if names else "a VM of the fleet"
        fields.complain("vm", f"there is no VM {shown(vm)}", right)
    return vm
