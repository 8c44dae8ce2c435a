"""Random scripts in which functions of the kernel fail, from a seed.

They are ordinary random scripts with failures put in: allocations and file handlers that fail at
their first or a later call, and reboots that are tried with and without a freeze that fails. What
is left behind by an operation that was undone shows in what comes after.

Happy path: `random_failing_script(seed, index)` gives the text.
"""

from __future__ import annotations

from random import Random
from typing import Final

from fleet.recorder.scripts import random_script
from kernelmodel.sim.rng import stream

__all__ = ["random_failing_script"]

_ERRORS: Final = ("ENOMEM", "EINVAL", "EIO", "EBUSY", "ENOSPC")
#: What can fail in an operation.
_FUNCTIONS: Final = {
    "create": (
        "kho_alloc_preserve", "kho_block_set_grow", "luo_session_alloc", "luo_session_getfile",
    ),
    "preserve": (
        "kho_alloc_preserve", "kho_block_set_grow", "kho_preserve_vmalloc",
        "luo_flb_file_preserve", "memfd_luo_preserve", "memfd_pin_folios",
    ),
    "fetch": ("memfd_alloc_file", "memfd_luo_retrieve"),
    "retrieve": ("luo_session_getfile",),
    "memfd": ("memfd_alloc_file",),
}  # fmt: skip
_FAILING: Final = 0.15
_REBOOTING: Final = 0.06


def random_failing_script(seed: int, index: int) -> str:
    """The script of that number; a function of its arguments alone."""
    rng = stream(seed, "failing script", index)
    lines: list[str] = []
    # A debugger is needed, and that sees memory below 4 GiB alone.
    for line in random_script(seed, index).replace(" memory=4G", " memory=3G").splitlines():
        lines += _before(line.split()[:1], rng)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _before(op: list[str], rng: Random) -> list[str]:
    lines = []
    if op and op[0] in _FUNCTIONS and rng.random() < _FAILING:
        function = rng.choice(_FUNCTIONS[op[0]])
        lines.append(f"fail {function} {rng.choice((1, 1, 1, 2, 2, 3))} {rng.choice(_ERRORS)}")
    if rng.random() < _REBOOTING:
        freeze = rng.choice(("memfd_luo_freeze", "memfd_luo_freeze", "luo_session_serialize"))
        lines.append(f"fail {freeze} {rng.choice((1, 1, 2, 3, 5))} {rng.choice(_ERRORS)}")
        lines.append("tryreboot")
    return lines
