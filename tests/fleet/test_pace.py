"""Pacing: virtual time follows a wall clock that a test turns by hand."""

from __future__ import annotations

import asyncio

import pytest

from fleet.pace import FreeRunning, Paced, SystemWall
from tests.fleet.rollouts import SECOND
from tests.fleet.toys import HandWall


@pytest.mark.parametrize("speed", [0, -1, float("nan")])
def test_a_speed_that_gets_nowhere_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        Paced(speed)


def test_free_running_time_is_that_of_the_last_event() -> None:
    pace = FreeRunning()
    assert pace.now_ns(5) == 5
    with pace.held():
        assert asyncio.run(pace.glance(10**18, asyncio.Event()))


def test_paced_time_passes_at_its_speed() -> None:
    wall = HandWall(1000.0)
    pace = Paced(60, wall)
    assert pace.now_ns(0) == 0
    wall.seconds += 2
    assert pace.now_ns(0) == 120 * SECOND
    assert pace.now_ns(200 * SECOND) == 200 * SECOND


def test_paced_time_may_begin_where_an_earlier_run_ended() -> None:
    wall = HandWall()
    pace = Paced(60, wall, from_ns=300 * SECOND)
    assert pace.now_ns(0) == 300 * SECOND
    assert asyncio.run(pace.glance(300 * SECOND, asyncio.Event()))
    wall.seconds += 1
    assert pace.now_ns(0) == 360 * SECOND


def test_an_event_is_due_when_its_time_has_come() -> None:
    wall = HandWall()
    pace = Paced(60, wall)

    async def wait() -> int:
        glances = 1
        while not await pace.glance(60 * SECOND, asyncio.Event()):
            glances += 1
        return glances

    assert asyncio.run(wait()) == 4
    assert wall.seconds == pytest.approx(1)
    assert asyncio.run(wait()) == 1


def test_somebody_who_asks_cuts_the_waiting_short() -> None:
    wall = HandWall()
    pace = Paced(1, wall)
    wakeup = asyncio.Event()
    wakeup.set()
    assert not asyncio.run(pace.glance(60 * SECOND, wakeup))
    assert not asyncio.run(pace.glance(None, wakeup))
    assert wall.seconds == 0


def test_no_time_passes_while_it_is_held() -> None:
    wall = HandWall()
    pace = Paced(60, wall)
    wall.seconds += 1
    with pace.held():
        wall.seconds += 100
        assert pace.now_ns(0) == 60 * SECOND
    assert pace.now_ns(0) == 60 * SECOND
    wall.seconds += 1
    assert pace.now_ns(0) == 120 * SECOND


def test_the_system_s_wall_waits_no_longer_than_it_is_told_to() -> None:
    wall = SystemWall()

    async def wait() -> None:
        wakeup = asyncio.Event()
        await wall.wait(wakeup, 0)
        wakeup.set()
        await wall.wait(wakeup, 1e9)

    before = wall.now()
    asyncio.run(wait())
    assert wall.now() >= before
