"""`lufleet conform --corrupt` and `--list-corruptions`: a script with a handover spoilt on its way.

A corruption is a word behind a script's `kexec` line. `--corrupt LABEL@BOOT` puts it there for
whoever does not want to change the script: at the jump into boot BOOT, the second unless said
otherwise.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from rich.console import Console

from fleet.bad_input import BadInput, InputFault
from kernelmodel.corruptions.catalogue import CORRUPTIONS
from kernelmodel.corruptions.corruption import Corruption

__all__ = ["corrupted", "expectation", "list_corruptions"]


def corrupted(text: str, path: Path, asked: str) -> tuple[str, Corruption]:
    """The script's text with the corruption in it, and what that is.

    Raises:
        BadInput: there is no such corruption, or no such boot to jump into.
    """
    label, _, boot = asked.partition("@")
    faults: list[InputFault] = []
    if label not in CORRUPTIONS:
        near = get_close_matches(label, CORRUPTIONS, 1)
        right = f"{near[0]} is one" if near else "--list-corruptions has those there are"
        faults.append(InputFault("--corrupt", 0, f"there is no corruption {label!r}", right))
    if boot and (not boot.isdecimal() or int(boot) <= 1):
        what = f"{boot!r} is no boot that a handover can be for"
        faults.append(InputFault("--corrupt", 0, what, "the first such boot is 2"))
    if faults:
        raise BadInput(faults)
    wanted = int(boot or "2")
    lines = text.splitlines()
    jumps = [at for at, line in enumerate(lines) if line.split()[:1] == ["kexec"]]
    if len(jumps) < wanted - 1:
        what = f"has {len(jumps) + 1} boots: there is no jump into boot {wanted} to corrupt"
        raise BadInput([InputFault(str(path), 0, what)])
    lines[jumps[wanted - 2]] = f"kexec {label}"
    return "\n".join(lines) + "\n", CORRUPTIONS[label]


def expectation(corruption: Corruption) -> str:
    """What to expect of it, as a sentence."""
    outcome = corruption.outcome.value + (f" ({corruption.errno})" if corruption.errno else "")
    return f"{corruption.what} Outcome: {outcome}; {corruption.because} [{corruption.source}]."


def list_corruptions(out: Console) -> None:
    """Every label, with what it changes and what comes of it."""
    width = max(map(len, CORRUPTIONS))
    for label, corruption in CORRUPTIONS.items():
        line = f"{label.ljust(width)}  {expectation(corruption)}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)
