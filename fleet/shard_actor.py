"""One shard's actor, and the next one when it dies.

An actor that dies takes its hosts' kernels with it. Its handle spawns another one from the same
config with the commands answered so far, which replays a host's own commands when that host is
next needed, and repeats the call. A shard that dies again and again is `HostUnreachable`.

An actor that cannot be reached may be alive all the same: workers of a node that was given up go on
computing until they notice. So each actor of a shard gets the next incarnation number, says it
with every reply, and a reply of any but the present one is dropped: what a former actor did, its
successor does not know of, and has been asked for in the same order.

An actor that hangs, stopped or starved on a machine that is otherwise well, is nobody's loss: Ray
goes on waiting for it. But an actor says that it is there whatever it computes, so that one that
does not say so for a while counts as dead.

An actor whose node has other code than the driver is not listened to: its figures would be
mixed with those of other actors, and nobody would know.

An actor for which a cluster has no room waits for it: another program may end, or an autoscaler
add a node. That is said, and after a while it is `NoRoom` for whoever asked, until there is room. A
successor does not insist on its share of a CPU when a node was lost: the rest has to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from msgspec.structs import replace

from node.api import HostCall, ShardConfig, UpdateCommand

__all__ = ["Deed", "HostUnreachable", "NoRoom", "Place", "RayShard"]

_log = logging.getLogger("lufleet")

#: Something done to a host; with its spec and the seed these determine it.
Deed = UpdateCommand | HostCall

#: How often a shard may die over one call before it is given up. A call dies with its node, with
#: the actor that was to take over there, and with calls before it: not all of it is its own fault.
_DEATHS_MAX: Final = 6

#: After so long without an answer an actor is asked whether it is there, and has as long to say so.
_SILENCE_SECONDS: Final = 60.0

#: How often an actor that does not come up is looked after, and when people hear of it: not before
#: one that has its place, whose CPU then counts as taken, will have started.
_LOOK_SECONDS: Final = 0.5
_SAY_SECONDS: Final = 15.0


class HostUnreachable(Exception):
    """A shard cannot be kept alive; its hosts can no longer be asked anything."""


class NoRoom(HostUnreachable):
    """No node has had room for a shard's actor for as long as was waited."""


class _Silent(Exception):
    """An actor no longer says that it is there."""


class Place(Protocol):
    """Where actors are started."""

    #: Exceptions with which a call ends whose actor is gone.
    losses: tuple[type[Exception], ...]
    #: A digest of the code that is to simulate, "" where there cannot be another.
    code: str
    #: How long an actor may wait for room.
    patience_seconds: float

    def start(self, config: ShardConfig, *, squeezed: bool) -> Any:  # noqa: ANN401 - Ray's handles are not typed
        """An actor, at once; it comes up when there is room. `squeezed`: without its CPU."""

    def kill(self, actor: Any) -> None:  # noqa: ANN401 - as above
        """End an actor, if it can be reached."""

    def is_short(self, config: ShardConfig) -> bool:
        """Whether the nodes that there are could not hold every shard, were they empty."""

    def missing(self, config: ShardConfig, *, squeezed: bool) -> str:
        """What keeps an actor from being placed now, "" if nothing does."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A call that a shard's handle has not settled yet."""

    method: str
    args: tuple[object, ...]
    history: Sequence[Deed]
    reply: Any = None  # from the present actor
    is_answered: bool = False


class RayShard:
    """One actor, replaced by another when it dies."""

    def __init__(self, config: ShardConfig, place: Place) -> None:
        self._config = config
        self._place = place
        self._history: list[Deed] = []
        self._unsettled: deque[_Asked] = deque()
        self._incarnation = 0
        self._launch()

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of its hosts."""
        return tuple(host.name for host in self._config.hosts)

    async def call(self, method: str, *args: object, history: Sequence[Deed] = ()) -> Any:  # noqa: ANN401 - the shard's answer
        """Call a method of the shard; see `fleet.launcher.ShardHandle`.

        Raises:
            HostUnreachable: its actors die one after the other, or there is no room for one.
        """
        asked = _Asked(method, args, history)
        self._unsettled.append(asked)
        self._send(asked)
        try:
            answer = await self._answer(asked)
            asked.is_answered = True
        except NoRoom:
            asked.is_answered = True  # nobody waits for it, but an actor that comes up will do it
            raise
        finally:
            if not asked.is_answered:
                self._unsettled.remove(asked)
        # Answers may overtake one another on their way; what they did to hosts must not.
        while self._unsettled and self._unsettled[0].is_answered:
            self._history += self._unsettled.popleft().history
        return answer

    def kill(self) -> None:
        """End the actor at once; the next call starts another."""
        self._place.kill(self._actor)

    async def _answer(self, asked: _Asked) -> object:
        losses: tuple[type[Exception], ...] = (*self._place.losses, _Silent)
        deaths = 0
        while True:
            present = self._incarnation
            try:
                await self._up()
                if self._incarnation != present:
                    continue  # that one was not awaited any longer
                incarnation, answer = await self._heard(asked)
            except losses as error:
                deaths += 1
                if deaths == _DEATHS_MAX:
                    raise HostUnreachable(f"{self} died {deaths} times: {error}") from error
                if self._incarnation == present:  # no other call has replaced it meanwhile
                    self._replace()
            else:
                if incarnation == self._incarnation:
                    return answer

    async def _heard(self, asked: _Asked) -> tuple[int, Any]:
        """The reply of the present actor.

        Raises:
            _Silent: it does not even say that it is there.
        """
        actor = self._actor
        reply: asyncio.Future[tuple[int, Any]] = asyncio.ensure_future(asked.reply)
        try:
            while not (await asyncio.wait({reply}, timeout=_SILENCE_SECONDS))[0]:
                sign = asyncio.ensure_future(actor.ask.remote("is_there"))
                sign.add_done_callback(_look_at)  # a death shows in the reply as well
                first = asyncio.FIRST_COMPLETED
                await asyncio.wait({reply, sign}, timeout=_SILENCE_SECONDS, return_when=first)
                if not (reply.done() or sign.done()):
                    sign.cancel()
                    silent = f"says nothing for {_SILENCE_SECONDS:g} s"
                    if actor is self._actor:
                        _log.warning("%s %s: another one takes over", self, silent)
                    raise _Silent(silent)
            return reply.result()
        finally:
            reply.cancel()

    def _replace(self, *, squeezed: bool = False) -> None:
        """The actor counts as dead from here on, whether it is or not: its successor is asked."""
        self.kill()
        self._incarnation += 1
        self._launch(squeezed=squeezed)
        for asked in self._unsettled:
            self._send(asked)

    def _launch(self, *, squeezed: bool = False) -> None:
        commands = (*self._config.commands, *self._history)
        config = replace(self._config, commands=commands, incarnation=self._incarnation)
        self._actor = self._place.start(config, squeezed=squeezed)
        self._squeezed = squeezed
        self._coming_up: asyncio.Task[None] | None = None

    def _send(self, asked: _Asked) -> None:
        asked.reply = self._actor.ask.remote(asked.method, *asked.args)

    async def _up(self) -> None:
        """Return when the present actor is there, or is not the present one any more."""
        if self._coming_up is None:
            self._coming_up = asyncio.ensure_future(self._come_up())
            self._coming_up.add_done_callback(_look_at)  # whoever asked may have gone
        coming_up = self._coming_up
        try:
            await asyncio.shield(coming_up)
        except NoRoom:
            if self._coming_up is coming_up:
                self._coming_up = None  # the next call looks again: there may be room by then
            raise

    async def _come_up(self) -> None:
        actor = self._actor
        ready = asyncio.ensure_future(actor.__ray_ready__.remote())
        try:
            await self._look_after(ready)
        finally:
            ready.cancel()
        if self._place.code and actor is self._actor:
            await self._check_code()

    async def _check_code(self) -> None:
        asked = _Asked("code", (), ())
        self._send(asked)
        _, (address, code) = await self._heard(asked)
        if code != self._place.code:
            same = "every node needs the same lufleet, with the same changes"
            raise HostUnreachable(f"{self} would run other code on {address} than here: {same}")

    async def _look_after(self, ready: asyncio.Future[object]) -> None:
        present, waited = self._incarnation, 0.0
        while not (await asyncio.wait({ready}, timeout=_LOOK_SECONDS))[0]:
            if self._incarnation != present:
                return
            if present and not self._squeezed and self._place.is_short(self._config):
                self._replace(squeezed=True)
                return
            missing = self._place.missing(self._config, squeezed=self._squeezed)
            waited = waited + _LOOK_SECONDS if missing else 0.0
            if waited == _SAY_SECONDS:
                _log.warning("waiting for room: %s %s", self, missing)
            if waited >= self._place.patience_seconds:
                raise NoRoom(f"no room after {waited:g} s: {self} {missing}")
        await ready

    def __str__(self) -> str:
        first, count = self._config.hosts[0].name, len(self._config.hosts)
        return f"the actor of {first} ({count} hosts)"


def _look_at(task: asyncio.Future[Any]) -> None:
    """Else asyncio would complain of an exception that nobody has seen."""
    if not task.cancelled():
        task.exception()
