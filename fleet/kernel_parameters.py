"""The kernel parameters that an inventory may give a host, as far as a live update hangs on them.

A `kho_scratch=` that the kernel would not understand is refused here: it would keep its default
and say so in a log that nobody reads. Parameters that would switch live update off, and those
that size hugepage pools, which have columns of their own, are refused as well; others pass.
"""

from __future__ import annotations

from typing import Final

from fleet.units import Unfit, shown
from kernelmodel.kho.scratch import ScratchParam
from kernelmodel.params import KernelParams, kstrtobool

__all__ = ["parse_cmdline"]

_RIGHT: Final = 'write it like "kho_scratch=256M,1G,512M" or "kho_scratch=200%"'
_POOLS: Final = ("hugepages", "hugepagesz", "default_hugepagesz")


def _check_kho_scratch(value: str) -> None:
    param = ScratchParam.parse(value) if value.isascii() else None
    if param is None:
        raise Unfit(f"kho_scratch={value[:40]} is not understood by the kernel", _RIGHT)
    # One area that cannot be allocated disables KHO, and of zero bytes none can.
    areas = (param.lowmem, param.globl, param.pernode)
    if param.percent == 0 or (param.percent is None and not all(areas)):
        raise Unfit(f"kho_scratch={value[:40]} leaves an area empty, which disables KHO", _RIGHT)


def parse_cmdline(value: object) -> str:
    """A host's further kernel parameters, separated by single spaces."""
    if not isinstance(value, str):
        raise Unfit(f"{shown(value)} is not text")
    if not value.isprintable():
        raise Unfit(f"{shown(value)} has characters that cannot be printed")
    for name, text in KernelParams(value).words():
        if name in _POOLS:
            right = "give the pools in hugepages_2M and hugepages_1G"
            raise Unfit(f"{name}= would size hugepage pools a second time", right)
        if name in ("kho", "liveupdate") and kstrtobool(text) is False:
            raise Unfit(f"{shown(f'{name}={text}')} switches live update off", "leave it out")
        if name == "kho_scratch":
            _check_kho_scratch(text)
    return " ".join(value.split())
