"""What a shard's answers are held to, whatever backend it runs on."""

from __future__ import annotations

from kernelmodel.errors import ModelBug
from node.api import MIN_UPDATE_NS, UpdateCommand, UpdateResult

__all__ = ["check_answer"]


def check_answer(command: UpdateCommand, result: UpdateResult) -> None:
    """Hold a shard to its promises.

    Raises:
        ModelBug: it broke one.
    """
    if (result.host, result.seq) != (command.host, command.seq):
        raise ModelBug(f"asked for {command}, got {result.host} seq {result.seq}")
    # Later than asked if somebody kept the host busy through HostService.
    if result.start_ns < command.start_ns:
        raise ModelBug(f"{result.host}: started before {command.start_ns} ns")
    if result.end_ns < result.start_ns + MIN_UPDATE_NS:
        raise ModelBug(f"{result.host}: updated in {result.end_ns - result.start_ns} ns")
