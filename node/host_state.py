"""The states of a host, which of them follow which, and what a host refuses because of its state.

`node.host` goes from state to state, by `NEXT` alone; whoever asks something of a host is told with
these errors what the kernel was not even asked.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

__all__ = ["NEXT", "HostPanicked", "HostState", "HostStateError"]


class HostState(StrEnum):
    """Where a host stands in its life."""

    UP = "up"  # a kernel runs
    KEXEC_LOADED = "kexec_loaded"  # and the next one is loaded
    REBOOTING = "rebooting"  # between reboot(2) and the next kernel's agent
    PANICKED = "panicked"  # only a cold reboot leads on
    COLD_BOOTING = "cold_booting"


NEXT: Final = {
    HostState.UP: {HostState.KEXEC_LOADED, HostState.COLD_BOOTING, HostState.PANICKED},
    HostState.KEXEC_LOADED: {
        HostState.REBOOTING,
        HostState.COLD_BOOTING,
        HostState.KEXEC_LOADED,
        HostState.PANICKED,
    },
    HostState.REBOOTING: {HostState.UP, HostState.PANICKED},
    HostState.PANICKED: {HostState.COLD_BOOTING},
    HostState.COLD_BOOTING: {HostState.UP, HostState.PANICKED},
}


class HostStateError(Exception):
    """The host or the VM is not in a state for this; `reason` is a word in upper snake case."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class HostPanicked(HostStateError):
    """The kernel died of what it was asked to do; the host is PANICKED now."""
