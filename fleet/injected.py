"""The faults that a scenario injects, `[[faults]]`: each kind has its own keys.

A fault on a host that is not there, or with a key that its kind would not look at, would never
strike, and the run would look better than it should. Both are refused.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from fleet.bad_input import Faults, did_you_mean
from fleet.fields import Fields
from fleet.inventory import Inventory
from fleet.units import shown
from kernelmodel.errors import ERRNO_CLASSES
from node.api import FaultSpec

__all__ = ["KINDS", "read_faults"]


class _Kind(Struct, frozen=True):
    """What a kind of fault looks at beside `host` and `times`."""

    factor: bool = False
    errno: str = ""  # the default errno, "" for a kind without one
    vm: bool = False


KINDS: Final = {
    "slow-boot": _Kind(factor=True),
    "freeze-fails": _Kind(errno="EIO"),
    "next-kernel-panics": _Kind(),
    "boot-hangs": _Kind(),
    "drop-preserved-page": _Kind(vm=True),
    "corrupt-folio-entry": _Kind(vm=True),
    "kexec-load-fails": _Kind(errno="ENOMEM"),
}

_MOST_TIMES: Final = 1_000_000
_LARGEST_FACTOR: Final = 1000.0
_HINTS_UP_TO: Final = 5_000


def read_faults(root: Fields, inventory: Inventory, faults: Faults) -> tuple[FaultSpec, ...]:
    """Read every `[[faults]]`, against the hosts and VMs of the inventory."""
    found: list[FaultSpec] = []
    for fields in root.tables("faults"):
        before = len(faults)
        name = fields.text("kind", None, KINDS, "kinds")
        kind = KINDS.get(name, _Kind(factor=True, errno="EIO", vm=True))
        vm = _read_vm(fields, inventory) if kind.vm and _wanted(fields, name, "vm") else ""
        host = _read_host(fields, inventory, vm)
        spec = FaultSpec(
            host=host,
            kind=name,
            times=fields.integer("times", 1, 0, _MOST_TIMES),
            vm=vm,
            factor=_read_factor(fields, name) if kind.factor else 1.0,
            errno=_read_errno(fields, kind.errno) if kind.errno else "",
        )
        for key in ("vm", "factor", "errno"):
            if fields.given(key) and not getattr(kind, key):
                fields.complain(key, f"a {name} fault has none", "leave it out")
        fields.close()
        if len(faults) == before:
            found.append(spec)
    return tuple(found)


def _wanted(fields: Fields, kind: str, key: str) -> bool:
    """Whether to read a key; an unknown kind is not blamed for keys that it lacks."""
    return kind in KINDS or fields.given(key)


def _read_factor(fields: Fields, kind: str) -> float:
    if not _wanted(fields, kind, "factor"):
        return 1.0
    return fields.number("factor", None, above=0.0, at_most=_LARGEST_FACTOR)


def _read_errno(fields: Fields, default: str) -> str:
    return fields.text("errno", default, sorted(ERRNO_CLASSES), "errnos")


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
        names = list(inventory.host_places) if len(inventory.host_places) <= _HINTS_UP_TO else []
        right = did_you_mean(host, names, noun="hosts") if names else "a host of the fleet"
        fields.complain("host", f"there is no host {shown(host)}", right)
    elif spec is not None and spec.host != host:
        fields.complain("host", f"VM {vm} is not on {host}", f'"{spec.host}", or leave it out')
    return host


def _read_vm(fields: Fields, inventory: Inventory) -> str:
    vm = fields.text("vm")
    if fields.given("vm") and inventory.vm_places and vm not in inventory.vm_places:
        names = list(inventory.vm_places) if len(inventory.vm_places) <= _HINTS_UP_TO else []
        right = did_you_mean(vm, names, noun="VMs") if names else "a VM of the fleet"
        fields.complain("vm", f"there is no VM {shown(vm)}", right)
    return vm
