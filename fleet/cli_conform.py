"""The options of `lufleet conform`, as thin as the rest of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from fleet.cli_kernel import BootTimeout, OtherKernels, SystemMap, other_kernels

__all__ = ["conform"]

_ALONE: Final = "On the model alone"
_AGAINST: Final = "Against a kernel, or random"

_Scripts = Annotated[list[Path] | None, typer.Argument(metavar="SCRIPT.scn...", show_default=False)]
_Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Compare with the recordings, SCRIPT.trace beside each script; the exit code is 4 if "
        "one differs.",
        rich_help_panel=_ALONE,
    ),
]
_Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Run each boot in a new process that is given only a memory file, firmware's record "
        "and the rest of the script.",
        rich_help_panel=_ALONE,
    ),
]
_KeepHandover = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep what each boot is given: NAME.bootN.memory, where an offset is a physical "
        "address, and NAME.bootN.json. Implies --fresh.",
        show_default=False,
        rich_help_panel=_ALONE,
    ),
]
_Handover = Annotated[
    Path | None,
    typer.Option(
        metavar="NAME.bootN.json",
        help="Play one script on from here, boot N first, as these two files are now. Implies "
        "--fresh.",
        show_default=False,
        rich_help_panel=_ALONE,
    ),
]
_Corrupt = Annotated[
    str,
    typer.Option(
        metavar="LABEL[@BOOT]",
        help="Corrupt the handover that boot BOOT (2) is given, and say what to expect. Takes the "
        "place of what the script's `kexec` line says.",
        show_default=False,
        rich_help_panel=_ALONE,
    ),
]
_ListCorruptions = Annotated[
    bool,
    typer.Option(
        "--list-corruptions",
        help="Print all labels, what each changes and what comes of it, and exit.",
        rich_help_panel=_ALONE,
    ),
]
_Against = Annotated[
    Path | None,
    typer.Option(
        metavar="BZIMAGE",
        help="Play the scripts on this kernel as well, and say where it answers otherwise.",
        show_default=False,
        rich_help_panel=_AGAINST,
    ),
]
_Random = Annotated[
    int,
    typer.Option(metavar="N", min=0, help="Random scripts besides.", rich_help_panel=_AGAINST),
]
_Seed = Annotated[int, typer.Option(help="Of the random scripts.", rich_help_panel=_AGAINST)]
_Huge = Annotated[
    bool,
    typer.Option("--huge", help="Random scripts are about huge pages.", rich_help_panel=_AGAINST),
]
_Failing = Annotated[
    bool,
    typer.Option(
        "--failing",
        help="In random scripts functions of the kernel fail.",
        rich_help_panel=_AGAINST,
    ),
]
_Keep = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write scripts that differ here, each with the kernel's trace; without a kernel, "
        "every script with the model's.",
        show_default=False,
        rich_help_panel=_AGAINST,
    ),
]
_Shrink = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="Try to shorten a script that differs N times.",
        rich_help_panel=_AGAINST,
    ),
]


def conform(
    scripts: _Scripts = None,
    check: _Check = False,
    fresh: _Fresh = False,
    keep_handover: _KeepHandover = None,
    handover: _Handover = None,
    corrupt: _Corrupt = "",
    list_corruptions: _ListCorruptions = False,
    against: _Against = None,
    random: _Random = 0,
    seed: _Seed = 1,
    huge: _Huge = False,
    failing: _Failing = False,
    keep: _Keep = None,
    shrink: _Shrink = 0,
    system_map: SystemMap = None,
    other_kernel: OtherKernels = None,
    boot_timeout: BootTimeout = 60.0,
) -> None:
    """Run scripts of live-update operations, each on a modelled host, and print their traces.

    Of several scripts each trace stands under a heading, "# SCRIPT".

    A kernel that panics or refuses to reboot ends its trace; standard error says why.
    """
    from fleet.standard_output import consoles

    out, err = consoles()
    if list_corruptions:
        from fleet.corruptions_command import list_corruptions as print_all

        print_all(out)
        return
    if not scripts and not random:
        raise typer.BadParameter("no script: name some, or ask for --random ones")
    paths = tuple(scripts or ())
    if against is None and not random and keep is None:
        from fleet.conform import PlayOptions
        from fleet.conform import conform as play

        if handover is not None and len(paths) > 1:
            raise typer.BadParameter("--handover is of one script: name that alone")
        options = PlayOptions(paths, fresh, keep_handover, handover, check, corrupt)
        raise typer.Exit(play(options, out, err))
    if fresh or check or keep_handover is not None or handover is not None or corrupt:
        raise typer.BadParameter(
            "--check, --fresh, --keep-handover, --handover and --corrupt are for scripts on the "
            "model alone, not for --against, --random or --keep"
        )
    if huge and failing:
        raise typer.BadParameter("--huge and --failing are different random scripts")
    from fleet.recorder.commands import ConformOptions, conform_many

    many = ConformOptions(
        scripts=paths,
        random=random,
        seed=seed,
        huge=huge,
        failing=failing,
        against=against,
        keep=keep,
        shrink=shrink,
        system_map=system_map,
        others=other_kernels(other_kernel),
        boot_timeout_s=boot_timeout,
    )
    raise typer.Exit(conform_many(many, out, err))
