"""What a coordinator is told and what it answers: the alphabet of `Coordinator.step`."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from fleet.api import RolloutState
from node.api import UpdateCommand, UpdateResult

__all__ = [
    "Action",
    "Finished",
    "HostDone",
    "Observation",
    "Refused",
    "Request",
    "RequestKind",
    "StartHosts",
    "Tick",
    "WakeAt",
]


class RequestKind(StrEnum):
    """What a person may ask of a rollout."""

    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"


class Tick(Struct, frozen=True, tag=True):
    """Virtual time has come to `now_ns`; the first one starts the rollout."""

    now_ns: int


class HostDone(Struct, frozen=True, tag=True):
    """A host's update ended, at `result.end_ns`."""

    result: UpdateResult

    @property
    def now_ns(self) -> int:
        """When it happened."""
        return self.result.end_ns


class Request(Struct, frozen=True, tag=True):
    """Somebody wants the rollout paused, resumed or aborted."""

    now_ns: int
    kind: RequestKind
    why: str = ""


class StartHosts(Struct, frozen=True):
    """Send these; every one starts at the current virtual time."""

    commands: tuple[UpdateCommand, ...]


class WakeAt(Struct, frozen=True):
    """Send a `Tick` at this instant."""

    at_ns: int


class Refused(Struct, frozen=True):
    """A request that makes no sense in the current state; nothing has changed."""

    request: Request
    why: str


class Finished(Struct, frozen=True):
    """The rollout is over: no host is in flight and none will start."""

    state: RolloutState
    why: str


Observation = Tick | HostDone | Request
Action = StartHosts | WakeAt | Refused | Finished
