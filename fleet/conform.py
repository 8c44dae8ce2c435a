"""`lufleet conform`: one script of live-update operations on one modelled host, and its trace."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from fleet.bad_input import BadInput, InputFault
from fleet.console import mistakes
from kernelmodel.conform import Script, ScriptError, play
from kernelmodel.errors import ModelBug

__all__ = ["conform", "read_script"]


def read_script(path: Path) -> Script:
    """The script in a file.

    Raises:
        BadInput: it cannot be read, or is no script.
    """
    try:
        return Script.parse(path.read_text(encoding="utf-8"))
    except ScriptError as error:
        raise BadInput(InputFault(str(path), line, what) for line, what in error.faults) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput([InputFault(str(path), 0, f"cannot be read: {error}")]) from None


def conform(path: Path, out: Console, err: Console) -> int:
    """Print the trace; the exit code."""
    try:
        script = read_script(path)
    except BadInput as bad:
        err.print(mistakes(bad))
        return 2
    try:
        for line in play(script):
            out.print(line, markup=False, highlight=False, soft_wrap=True)
    except ModelBug as bug:
        err.print(f"The simulator failed: {bug}. To see it again: lufleet conform {path}")
        return 4
    return 0
