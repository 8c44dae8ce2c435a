"""One shard's actor, and the next one when it dies.

An actor that dies takes its hosts' kernels with it. Its handle spawns another one from the same
config with the commands answered so far, which replays a host's own commands when that host is
next needed, and repeats the call. A shard that dies again and again is `HostUnreachable`.

An actor that cannot be reached may be alive all the same: workers of a node that was given up go on
computing until they notice. So each actor of a shard gets the next incarnation number, says it
with every reply, and a reply of any but the present one is dropped: what a former actor did, its
successor does not know of, and has been asked for in the same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from msgspec.structs import replace

from node.api import HostCall, ShardConfig, UpdateCommand

__all__ = ["Deed", "HostUnreachable", "RayShard"]

#: Something done to a host; with its spec and the seed these determine it.
Deed = UpdateCommand | HostCall

#: How often in a row a shard may die over one call before it is given up.
_DEATHS_MAX = 3


class HostUnreachable(Exception):
    """A shard cannot be kept alive; its hosts can no longer be asked anything."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A call that a shard's handle has not settled yet."""

    method: str
    args: tuple[object, ...]
    history: Sequence[Deed]
    reply: Any = None  # from the present actor
    is_answered: bool = False


class RayShard:
    """One actor, replaced by another when it dies. `start` starts one with a config."""

    def __init__(
        self, config: ShardConfig, ray: ModuleType, start: Callable[[ShardConfig], Any]
    ) -> None:
        self._config = config
        self._ray = ray
        self._start = start
        self._history: list[Deed] = []
        self._unsettled: deque[_Asked] = deque()
        self._incarnation = 0
        self._actor = self._successor()
        exceptions = ray.exceptions
        # An answer too big for a message lies on the actor's node until it is fetched, and is lost
        # with it. The actor has acted by then: it takes a new one to ask again.
        self._losses = (
            exceptions.RayActorError,
            exceptions.ObjectLostError,
            exceptions.OutOfMemoryError,
        )

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of its hosts."""
        return tuple(host.name for host in self._config.hosts)

    async def call(self, method: str, *args: object, history: Sequence[Deed] = ()) -> Any:  # noqa: ANN401 - ShardHandle
        """Call a method of the shard; see `fleet.launcher.ShardHandle`.

        Raises:
            HostUnreachable: its actors die one after the other.
        """
        asked = _Asked(method, args, history)
        self._unsettled.append(asked)
        self._send(asked)
        try:
            answer = await self._answer(asked)
        except BaseException:
            self._unsettled.remove(asked)
            raise
        asked.is_answered = True
        # Answers may overtake one another on their way; what they did to hosts must not.
        while self._unsettled and self._unsettled[0].is_answered:
            self._history += self._unsettled.popleft().history
        return answer

    async def _answer(self, asked: _Asked) -> object:
        deaths = 0
        while True:
            present = self._incarnation
            try:
                incarnation, answer = await asked.reply
            except self._losses as error:
                deaths += 1
                if deaths == _DEATHS_MAX:
                    first, count = self.hosts[0], len(self.hosts)
                    raise HostUnreachable(
                        f"the actor of {first} ({count} hosts) died {deaths} times: {error}"
                    ) from error
                if self._incarnation == present:  # no other call has replaced it meanwhile
                    self._replace()
            else:
                if incarnation == self._incarnation:
                    return answer

    def _replace(self) -> None:
        """The actor counts as dead from here on, whether it is or not: its successor is asked."""
        self.kill()
        self._incarnation += 1
        self._actor = self._successor()
        for asked in self._unsettled:
            self._send(asked)

    def _send(self, asked: _Asked) -> None:
        asked.reply = self._actor.ask.remote(asked.method, *asked.args)

    def kill(self) -> None:
        """End the actor at once; the next call starts another."""
        self._ray.kill(self._actor)

    def _successor(self) -> Any:  # noqa: ANN401 - Ray's handles are not typed
        commands = (*self._config.commands, *self._history)
        return self._start(replace(self._config, commands=commands, incarnation=self._incarnation))
