"""The options of `lufleet inspect`, as thin as the rest of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["inspect"]


def inspect(
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE",
            help="A .kho file, gzipped or not; raw physical memory; or an ELF core of a machine.",
            show_default=False,
        ),
    ],
    boot: Annotated[
        bool, typer.Option("--boot", help="Boot a modelled host from it and retrieve everything.")
    ] = False,
    scratch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDR+SIZE",
            help="Scratch areas to boot with; if not given, one that is clear of the image.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE|ADDR+SIZE",
            help="Memory to boot with: of each NUMA node, or its ranges.",
            show_default=False,
        ),
    ] = None,
    release: Annotated[
        str, typer.Option(help="Release to boot; if not given, a 7.3.4 that knows the files.")
    ] = "",
    fdt: Annotated[
        str, typer.Option(metavar="ADDR", help="Address of the FDT, if there are several.")
    ] = "",
    hashes: Annotated[
        bool, typer.Option("--hashes/--no-hashes", help="Hash the content of files.")
    ] = True,
    pretty: Annotated[
        bool, typer.Option("--pretty/--json", help="Print it for people, or for programs.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the pages that belong to the handover as a .kho file, gzipped if the name "
            "ends in .gz: a few pages of a whole memory.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say what a handover image holds: from a modelled host or from a real one."""
    from fleet.inspect_command import InspectOptions
    from fleet.inspect_command import inspect as inspect_image
    from fleet.standard_output import consoles

    options = InspectOptions(
        image=image,
        boot=boot,
        scratch=tuple(scratch or ()),
        memory=tuple(memory or ()),
        release=release,
        fdt=fdt,
        hashes=hashes,
        pretty=pretty,
        save=save,
    )
    raise typer.Exit(inspect_image(options, *consoles()))
