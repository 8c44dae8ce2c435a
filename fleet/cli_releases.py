"""The options of `lufleet releases`, as thin as the rest of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["releases"]


def releases(
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Add the releases of this file; it may be a scenario.",
            show_default=False,
        ),
    ] = None,
    path: Annotated[
        str,
        typer.Option(
            metavar="A,B,C", help="What each step of this upgrade does.", show_default=False
        ),
    ] = "",
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="RELEASE",
            help="What a step from here to each other release does.",
            show_default=False,
        ),
    ] = "",
    to: Annotated[
        str,
        typer.Option(
            metavar="RELEASE",
            help="With --from: the path to here with the fewest cold reboots.",
            show_default=False,
        ),
    ] = "",
    vms: Annotated[
        str,
        typer.Option(
            metavar="BACKING,...", help="What backs the VMs: memfd, hugetlb-2M, hugetlb-1G."
        ),
    ] = "memfd",
    json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Show the kernel releases that are modelled, or which steps between them are live.

    A step is live if VMs keep their memory, cold if nothing can be handed
    over in the first place; else it loses-memory, panics, or ends with EIO
    from /dev/liveupdate for ever.
    """
    from fleet.releases_command import ReleasesOptions
    from fleet.releases_command import releases as show_releases
    from fleet.standard_output import consoles

    if path and (from_ or to):
        raise typer.BadParameter("--path names every step; leave --from and --to out")
    if to and not from_:
        raise typer.BadParameter("--to needs --from")
    options = ReleasesOptions(
        file=file,
        path=tuple(name.strip() for name in path.split(",")) if path else (),
        at=from_,
        to=to,
        vms=tuple(name.strip() for name in vms.split(",")) if vms else (),
        json=json,
    )
    raise typer.Exit(show_releases(options, *consoles()))
