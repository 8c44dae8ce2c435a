"""How the commands end: the one list of exit codes."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExitCode"]


class ExitCode(IntEnum):
    """How `lufleet` ends."""

    DONE = 0
    BAD_INPUT = 2
    HALTED = 3  # by its own gates, or aborted
    SIMULATOR_FAILED = 4  # or its answer is not the real kernel's
    INTERRUPTED = 130
