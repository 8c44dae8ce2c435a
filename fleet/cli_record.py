"""The options of `lufleet record`, as thin as the rest of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet.cli_kernel import BootTimeout, OtherKernels, SystemMap, other_kernels

__all__ = ["record"]

_Kernel = Annotated[
    Path,
    typer.Option(metavar="BZIMAGE", help="The kernel to ask; docs/recording.md has one built."),
]
_DumpImage = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[BOOT=]FILE",
        help="Write what a boot (the first, if none is given) hands over as it jumps to FILE, "
        ".kho or .kho.gz, for lufleet inspect. May be given several times.",
        show_default=False,
    ),
]
_ConsoleLog = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write what the kernels said of themselves.", show_default=False
    ),
]


def record(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT.scn", show_default=False)],
    kernel: _Kernel,
    system_map: SystemMap = None,
    other_kernel: OtherKernels = None,
    dump_image: _DumpImage = None,
    console_log: _ConsoleLog = None,
    boot_timeout: BootTimeout = 60.0,
) -> None:
    """Run a script of live-update operations on a real kernel and print its trace.

    The kernel runs under QEMU, emulated; it takes the Debian packages qemu-system-x86 and gcc.
    """
    from fleet.recorder.commands import RecordOptions
    from fleet.recorder.commands import record as run_script
    from fleet.standard_output import consoles

    dump = dict(map(_boot_file, dump_image or ()))
    others = other_kernels(other_kernel)
    options = RecordOptions(script, kernel, others, system_map, dump, console_log, boot_timeout)
    raise typer.Exit(run_script(options, *consoles()))


def _boot_file(text: str) -> tuple[int, Path]:
    boot, equals, file = text.partition("=")
    if not equals:
        return 1, Path(text)
    if not boot.isdecimal() or not int(boot) or not file:
        raise typer.BadParameter(f"{text!r} is not BOOT=FILE", param_hint="--dump-image")
    return int(boot), Path(file)
