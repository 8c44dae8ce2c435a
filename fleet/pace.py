"""How virtual time passes against the wall: as fast as it goes, or at a chosen speed.

An experiment runs free: the next event is due at once. A living fleet is paced: at `speed` 60 an
event that lies a virtual minute ahead is due in a second. Time that the hosts' models need for
their computation is taken out (`held`), so that a slow machine sees the same rollout more slowly
rather than events that are all overdue.

Simplification: paced time stands still while hosts compute, so a request that arrives then is
obeyed at the virtual time at which the computation began.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

__all__ = ["FreeRunning", "Pace", "Paced", "SystemWall", "Wall"]

#: Longest wall time between two looks at a paced clock, so that watchers see it move.
_GLANCE_SECONDS = 0.25
#: Shortest wait: less may be lost in the rounding of a wall clock's floats.
_LEAST_SECONDS = 1e-6


class Wall(Protocol):
    """The wall clock; tests bring one that they turn by hand."""

    def now(self) -> float:
        """Seconds, monotonic."""

    async def wait(self, wakeup: asyncio.Event, seconds: float) -> None:
        """Return after `seconds`, or as soon as `wakeup` is set."""


class SystemWall:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    async def wait(self, wakeup: asyncio.Event, seconds: float) -> None:
        """Return after `seconds`, or as soon as `wakeup` is set."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await wakeup.wait()


class Pace(Protocol):
    """What the driver asks before it lets virtual time pass."""

    def now_ns(self, at_least: int) -> int:
        """Virtual time now, given that it is `at_least` that already."""

    async def glance(self, at_ns: int | None, wakeup: asyncio.Event) -> bool:
        """Wait for `at_ns` (None: nothing is due) or `wakeup`; whether `at_ns` has come.

        It may return before either, for whoever watches the clock.
        """

    def held(self) -> contextlib.AbstractContextManager[None]:
        """No virtual time passes inside."""


class FreeRunning:
    """Every event is due at once."""

    def now_ns(self, at_least: int) -> int:
        """Virtual time is that of the last event."""
        return at_least

    async def glance(self, at_ns: int | None, wakeup: asyncio.Event) -> bool:
        """Whatever is next has come."""
        if at_ns is None:
            await wakeup.wait()
            return False
        await asyncio.sleep(0)
        return True

    def held(self) -> contextlib.AbstractContextManager[None]:
        """There is nothing to hold."""
        return contextlib.nullcontext()


class Paced:
    """`speed` virtual seconds a wall second; `from_ns` is the moment of construction."""

    def __init__(self, speed: float, wall: Wall | None = None, *, from_ns: int = 0) -> None:
        if not speed > 0:
            raise ValueError(f"speed is {speed}, it must be more than 0")
        self._speed = speed
        self._wall = wall or SystemWall()
        self._anchor_wall = self._wall.now()
        self._anchor_ns = from_ns
        self._is_held = False

    def now_ns(self, at_least: int) -> int:
        """Virtual time now, given that it is `at_least` that already."""
        return max(at_least, self._now_ns())

    async def glance(self, at_ns: int | None, wakeup: asyncio.Event) -> bool:
        """Wait for `at_ns` or `wakeup`, but not for long; whether `at_ns` has come."""
        if at_ns is None:
            await self._wall.wait(wakeup, _GLANCE_SECONDS)
            return False
        ahead_ns = at_ns - self._now_ns()
        if ahead_ns > 0:
            seconds = min(_GLANCE_SECONDS, ahead_ns / 1e9 / self._speed)
            await self._wall.wait(wakeup, max(seconds, _LEAST_SECONDS))
        else:
            await asyncio.sleep(0)
        return self._now_ns() >= at_ns

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No virtual time passes inside."""
        self._anchor_ns = self._now_ns()
        self._is_held = True
        try:
            yield
        finally:
            self._anchor_wall, self._is_held = self._wall.now(), False

    def _now_ns(self) -> int:
        if self._is_held:
            return self._anchor_ns
        passed = self._wall.now() - self._anchor_wall
        return self._anchor_ns + int(passed * self._speed * 1e9)
