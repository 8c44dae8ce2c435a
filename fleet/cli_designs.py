"""The options of `lufleet designs`, as thin as the rest of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["designs"]

_Costs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Cost rows of your own, as docs/cost-model.md describes them.",
        show_default=False,
    ),
]

_Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write designs.json and report.html there, with plots over VMs and memory.",
        show_default=False,
    ),
]


def designs(
    host: Annotated[str, typer.Option(metavar="2TiB|12TiB", help="Where to begin.")] = "2TiB",
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory, from 16GiB to 64TiB.", show_default=False),
    ] = None,
    vms: Annotated[
        int | None, typer.Option(metavar="N", help="VMs, up to 5000.", show_default=False)
    ] = None,
    pool_use: Annotated[
        int | None,
        typer.Option(metavar="PERCENT", help="Part of the pools that VMs use.", show_default=False),
    ] = None,
    guest_memfd_share: Annotated[
        int | None,
        typer.Option(
            metavar="PERCENT",
            help="VMs backed by a guest_memfd; the others are by a memfd.",
            show_default=False,
        ),
    ] = None,
    page_size: Annotated[
        str | None,
        typer.Option(
            metavar="2MiB|1GiB",
            help="One pool of 88 % of memory; if not given, 70 % in 1 GiB and 18 % in 2 MiB pages.",
            show_default=False,
        ),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(metavar="N", help="NUMA nodes, up to 16.", show_default=False)
    ] = None,
    design: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this one; may be given again.", show_default=False),
    ] = None,
    costs: _Costs = None,
    json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
    out: _Out = None,
) -> None:
    """Compare the designs for preserving hugetlb's shared state on one host.

    Each goes through a whole update, every failure, and ten updates in a row.
    docs/hugetlb-designs.md says what the rows mean.
    """
    from fleet.designs.command import DesignsOptions
    from fleet.designs.command import designs as compare_designs
    from fleet.standard_output import consoles

    options = DesignsOptions(
        host=host,
        memory=memory,
        vms=vms,
        pool_use=pool_use,
        guest_memfd_share=guest_memfd_share,
        page_size=page_size,
        nodes=nodes,
        design=tuple(design or ()),
        costs=costs,
        json=json,
        out=out,
    )
    raise typer.Exit(compare_designs(options, *consoles()))
