"""Options of the commands that ask a real kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["BootTimeout", "OtherKernels", "SystemMap", "other_kernels"]

BootTimeout = Annotated[
    float, typer.Option(metavar="SECONDS", help="What one boot of a real kernel may take.")
]
SystemMap = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The kernel's System.map, for scripts in which something fails or is corrupted, and "
        "for images of a handover; if not given, the one beside the image or in its build tree.",
        show_default=False,
    ),
]
OtherKernels = Annotated[
    list[str] | None,
    typer.Option(
        "--other-kernel",
        metavar="NAME=BZIMAGE",
        help="The kernel that scripts call NAME: no-memfd is built without "
        "CONFIG_LIVEUPDATE_MEMFD.",
        show_default=False,
    ),
]


def other_kernels(given: list[str] | None) -> dict[str, Path]:
    """Images by name. Raises: typer.BadParameter."""
    from kernelmodel.script import KERNELS

    named: dict[str, Path] = {}
    for text in given or ():
        name, _, file = text.partition("=")
        if name not in KERNELS or not file:
            known = ", ".join(f"{known}=BZIMAGE" for known in KERNELS)
            raise typer.BadParameter(f"{text!r} is none of {known}", param_hint="--other-kernel")
        named[name] = Path(file)
    return named
