"""The faults that a scenario injects, `[[faults]]`: each kind has its own keys.

A fault on a host that is not there, or with a key that its kind would not look at, would never
strike, and the run would look better than it should. Both are refused.
"""

from __future__ import annotations

from typing import Final

from fleet.bad_input import Faults, did_you_mean
from fleet.fields import Fields
from fleet.inventory import Inventory
from fleet.units import shown
from kernelmodel.errors import ERRNO_CLASSES
from node.api import FaultSpec
from node.faults import FAULT_KINDS

__all__ = ["read_faults"]

_OF_SOME_KINDS: Final = ("vm", "factor", "errno")
_MOST_TIMES: Final = 1_000_000
_LARGEST_FACTOR: Final = 1000.0
_HINTS_UP_TO: Final = 5_000


def read_faults(root: Fields, inventory: Inventory, faults: Faults) -> tuple[FaultSpec, ...]:
    """Read every `[[faults]]`, against the hosts and VMs of the inventory."""
    found: list[FaultSpec] = []
    for fields in root.tables("faults"):
        before = len(faults)
        kind = fields.text("kind", None, FAULT_KINDS, "kinds")
        looks_at = FAULT_KINDS.get(kind, frozenset())
        vm = _read_vm(fields, inventory) if "vm" in looks_at else ""
        spec = FaultSpec(
            host=_read_host(fields, inventory, vm),
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
        fields.close()
        if len(faults) == before:
            found.append(spec)
    return tuple(found)


def _read_factor(fields: Fields) -> float:
    return fields.number("factor", None, above=0.0, at_most=_LARGEST_FACTOR)


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
