"""A script played with each boot in a process of its own (`fleet.one_boot`).

A process is given a memory file, firmware's record and the rest of the script, and leaves the next
two; there is nothing else that could cross a kexec. The next process is started while one plays,
for it takes longer to start than to play, and reads nothing until it is its turn.

Happy path: `play_fresh` yields the lines that `kernelmodel.conform.play` yields.

Unhappy paths: `KernelEnded` where a kernel ended the trace, `ModelBug` where a process failed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from fleet.one_boot import BAD_SCRIPT, KERNEL_ENDED
from kernelmodel.conform import Script, ScriptError
from kernelmodel.errors import ModelBug
from kernelmodel.handover import Handover

__all__ = ["KernelEnded", "handover_name", "play_fresh", "rest_of"]

# -P: what lies in the user's directory is no module of ours
_COMMAND: Final = (sys.executable, "-P", "-X", "utf8", "-m", "fleet.one_boot")


class KernelEnded(Exception):
    """A kernel panicked or refused to reboot: the trace ends, and the message says how."""


def handover_name(name: str, boot: int) -> str:
    """The file name of the record that a boot of a script is given."""
    return f"{name}.boot{boot}.json"


def play_fresh(
    text: str, name: str, folder: Path, given: tuple[Path, Handover] | None = None
) -> Iterator[str]:
    """The trace of a script called `name`; handovers are left in `folder`.

    `given` is a handover to play on from, and its record's path.

    Raises:
        KernelEnded: the trace ends early. ScriptError: a jump is to corrupt what is not there.
        ModelBug: the model failed. OSError: no process.
    """
    boots = len(Script.parse(text).boots)
    first = given[1].boot if given else 1
    records = {boot: folder / handover_name(name, boot) for boot in range(first + 1, boots + 1)}
    if given:
        records[first] = given[0]
    with ExitStack() as processes:
        process = _start(first, records, processes)
        for boot in range(first, boots + 1):
            playing = process
            if boot < boots:
                process = _start(boot + 1, records, processes)
            output, said = playing.communicate(rest_of(text, boot))
            yield from output.splitlines()
            if playing.returncode == KERNEL_ENDED:
                raise KernelEnded(said)
            if playing.returncode == BAD_SCRIPT:
                raise ScriptError([(0, what) for what in said.splitlines()])
            if playing.returncode:
                raise ModelBug(said.strip() or f"boot {boot} ended with {playing.returncode}")


def _start(boot: int, records: dict[int, Path], processes: ExitStack) -> subprocess.Popen[str]:
    paths = [str(records.get(number, "")) for number in (boot, boot + 1)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(  # noqa: S603 # our own module
        [*_COMMAND, str(boot), *paths], stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8"
    )
    processes.enter_context(process)
    processes.callback(process.kill)  # one that has ended does not mind
    return process


def rest_of(text: str, boot: int) -> str:
    """What is left of a script before `boot`: earlier boots are empty, lines keep their numbers."""
    lines = text.splitlines()
    earlier = 0
    for at, line in enumerate(lines):
        if earlier == boot - 1:
            break
        if line.split()[:1] == ["kexec"]:
            earlier += 1
        elif not line.startswith("#!"):
            lines[at] = ""
    return "\n".join(lines) + "\n"
