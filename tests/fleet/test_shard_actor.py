"""A shard's actor and its successors, on a Ray that fails when it is told to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleet.shard_actor import HostUnreachable, NoRoom, RayShard
from node.api import ShardConfig, UpdateCommand, UpdatePolicy
from tests.fleet.rollouts import NEW, racks


class ActorDied(Exception):
    """Stands in for Ray's error."""


class FakeActor:
    """An actor of a Ray that is none: dies at the calls that it is told to."""

    def __init__(self, place: FakePlace, config: ShardConfig) -> None:
        self.place = place
        self.config = config
        self.comes_up = not place.is_full
        self.ask = self
        self.__ray_ready__ = Ready(self)

    def remote(self, method: str, *args: object) -> Any:
        async def answer() -> tuple[int, object]:
            if self.config.incarnation in self.place.hanging:
                await asyncio.Event().wait()
            await self.place.held.get(method, asyncio.sleep)(0)
            if method == "code":
                return self.config.incarnation, ("10.0.0.3", self.place.code_there)
            self.place.calls += 1
            self.place.asked.append(args)
            if self.place.calls in self.place.dies_at:
                raise ActorDied
            return self.config.incarnation, args

        return asyncio.ensure_future(answer())


class Ready:
    """What says that an actor has come up."""

    def __init__(self, actor: FakeActor) -> None:
        self.actor = actor

    def remote(self) -> Any:
        ready = asyncio.get_running_loop().create_future()
        if self.actor.comes_up:
            ready.set_result(None)
        return ready


class FakePlace:
    """As much of Ray and of a cluster as a shard's handle uses."""

    losses: tuple[type[Exception], ...] = (ActorDied,)
    patience_seconds = 1.0
    code = code_there = "today's"

    def __init__(self, *dies_at: int) -> None:
        self.dies_at = dies_at
        self.is_full = False  # actors that are started now do not come up
        self.lacks_nodes = False
        self.hanging: set[int] = set()  # incarnations that answer nothing
        self.held: dict[str, Any] = {}  # method -> what its answer waits for
        self.calls = 0
        self.asked: list[tuple[object, ...]] = []
        self.started: list[FakeActor] = []
        self.another = asyncio.Event()  # there is a second one
        self.squeezed: list[bool] = []
        self.killed: list[FakeActor] = []

    def start(self, config: ShardConfig, *, squeezed: bool) -> FakeActor:
        self.started.append(FakeActor(self, config))
        self.squeezed.append(squeezed)
        if len(self.started) == 2:
            self.another.set()
        return self.started[-1]

    def kill(self, actor: FakeActor) -> None:
        self.killed.append(actor)

    def is_short(self, config: ShardConfig) -> bool:
        return self.lacks_nodes

    def missing(self, config: ShardConfig, *, squeezed: bool) -> str:
        return "wants 1 CPU; free: no node" if self.is_full else ""


COMMANDS = [UpdateCommand(f"r1-h0{nr}", 1, nr, NEW, UpdatePolicy()) for nr in (1, 2)]
CONFIG = ShardConfig(seed=7, hosts=racks(2), vms=())


def test_a_dead_actor_is_rebuilt_with_what_was_answered_and_asked_again() -> None:
    place = FakePlace(2)
    shard = RayShard(CONFIG, place)
    for command in COMMANDS:
        answer = asyncio.run(shard.call("update", [command], history=[command]))
        assert answer == ([command],)
    assert [actor.config.commands for actor in place.started] == [(), (COMMANDS[0],)]
    assert [actor.config.incarnation for actor in place.started] == [0, 1]
    assert place.killed == [place.started[0]]


def test_a_late_reply_of_an_actor_that_was_given_up_is_not_counted() -> None:
    """Its successor was started without the deed, and has to be the one that does it."""

    async def late() -> None:
        first_is_told, second_is_told = asyncio.Event(), asyncio.Event()
        told = iter([first_is_told, second_is_told])
        place.held["update"] = lambda _: next(told).wait()
        updating = asyncio.ensure_future(shard.call("update", [COMMANDS[0]], history=COMMANDS[:1]))
        await asyncio.sleep(0)
        await shard.call("gauges")  # finds the actor dead; its successor answers
        assert [actor.config.incarnation for actor in place.started] == [0, 1]
        first_is_told.set()
        for _ in range(9):  # turns of the event loop
            await asyncio.sleep(0)
        assert place.calls == 3
        assert shard._history == []
        assert not updating.done()
        second_is_told.set()
        assert await updating == ([COMMANDS[0]],)

    place = FakePlace(1)
    shard = RayShard(CONFIG, place)
    asyncio.run(late())
    assert shard._history == COMMANDS[:1]


def test_deeds_are_replayed_in_the_order_of_the_calls_whichever_is_answered_first() -> None:
    async def overtaken() -> None:
        may_answer = asyncio.Event()
        place.held["update"] = lambda _: may_answer.wait()
        calls = [
            asyncio.ensure_future(shard.call(method, [command], history=[command]))
            for method, command in zip(("update", "call_host"), COMMANDS, strict=True)
        ]
        await calls[1]
        may_answer.set()
        await calls[0]

    place = FakePlace()
    shard = RayShard(CONFIG, place)
    asyncio.run(overtaken())
    assert shard._history == COMMANDS


def test_calls_in_flight_are_repeated_in_their_order() -> None:
    async def both() -> None:
        calls = [shard.call("update", [command], history=[command]) for command in COMMANDS]
        await asyncio.gather(*calls)

    place = FakePlace(1, 2)
    shard = RayShard(CONFIG, place)
    asyncio.run(both())
    assert place.asked[2:] == [([command],) for command in COMMANDS]


def test_a_shard_that_dies_again_and_again_is_given_up() -> None:
    shard = RayShard(CONFIG, FakePlace(1, 2, 3, 4, 5, 6))
    with pytest.raises(HostUnreachable, match=r"the actor of r1-h01 \(2 hosts\) died 6 times"):
        asyncio.run(shard.call("update", COMMANDS, history=COMMANDS))


def test_two_calls_that_see_the_same_death_rebuild_the_actor_once() -> None:
    place = FakePlace(1, 2)
    shard = RayShard(CONFIG, place)

    async def both() -> None:
        await asyncio.gather(shard.call("gauges"), shard.call("gauges"))

    asyncio.run(both())
    assert len(place.started) == 2
    assert len(place.killed) == 1


def test_an_actor_that_hangs_is_replaced_and_what_it_was_asked_is_asked_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def both() -> None:
        await asyncio.gather(
            *(shard.call("update", [command], history=[command]) for command in COMMANDS)
        )

    monkeypatch.setattr("fleet.shard_actor._SILENCE_SECONDS", 0.01)
    place = FakePlace()
    place.hanging = {0}
    shard = RayShard(CONFIG, place)
    asyncio.run(both())
    assert place.killed == place.started[:1]
    assert place.asked == [([command],) for command in COMMANDS]
    assert shard._history == COMMANDS
    assert [record.message for record in caplog.records] == [
        "the actor of r1-h01 (2 hosts) says nothing for 0.01 s: another one takes over"
    ]


def test_an_actor_that_computes_for_long_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def long() -> None:
        signs = 0

        async def sign(_: object) -> None:
            nonlocal signs
            signs += 1
            if signs == 9:
                done.set()

        done = asyncio.Event()
        place.held = {"update": lambda _: done.wait(), "is_there": sign}
        await RayShard(CONFIG, place).call("update", COMMANDS)

    monkeypatch.setattr("fleet.shard_actor._SILENCE_SECONDS", 0.01)
    place = FakePlace()
    asyncio.run(long())
    assert len(place.started) == 1


def test_an_actor_with_other_code_is_not_listened_to() -> None:
    async def twice() -> None:
        for _ in range(2):
            with pytest.raises(
                HostUnreachable, match=r"of r1-h01 \(2 hosts\) would run other code on 10.0.0.3"
            ):
                await shard.call("update", COMMANDS, history=COMMANDS)

    place = FakePlace()
    place.code_there = "yesterday's"
    shard = RayShard(CONFIG, place)
    asyncio.run(twice())
    assert len(place.started) == 1


def test_actors_that_all_hang_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.shard_actor._SILENCE_SECONDS", 0.01)
    place = FakePlace()
    place.hanging = set(range(6))
    with pytest.raises(HostUnreachable, match=r"died 6 times: says nothing for 0.01 s"):
        asyncio.run(RayShard(CONFIG, place).call("gauges"))


def test_an_exception_of_the_shard_is_not_taken_for_a_death() -> None:
    place = FakePlace(1)
    place.losses = (OSError,)
    with pytest.raises(ActorDied):
        asyncio.run(RayShard(CONFIG, place).call("gauges"))
    assert len(place.started) == 1


def test_an_actor_without_room_is_waited_for_and_then_given_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.shard_actor._LOOK_SECONDS", 0.001)
    monkeypatch.setattr("fleet.shard_actor._SAY_SECONDS", 0.002)
    place = FakePlace()
    place.is_full, place.patience_seconds = True, 0.004
    wants = r"the actor of r1-h01 \(2 hosts\) wants 1 CPU; free: no node"
    with pytest.raises(NoRoom, match=rf"no room after 0.004 s: {wants}"):
        asyncio.run(RayShard(CONFIG, place).call("gauges"))
    assert [record.message for record in caplog.records] == [
        "waiting for room: the actor of r1-h01 (2 hosts) wants 1 CPU; free: no node"
    ]
    assert len(place.started) == 1


def test_room_that_comes_late_is_used_and_what_was_given_up_is_part_of_the_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The actor was sent it and carries it out; the next one has to as well."""

    async def late() -> None:
        for command in COMMANDS:
            with pytest.raises(NoRoom):
                await shard.call("call_host", command, history=[command])
        place.started[0].comes_up = True
        assert await shard.call("gauges") == ()
        assert place.asked == [*((command,) for command in COMMANDS), ()]

    monkeypatch.setattr("fleet.shard_actor._LOOK_SECONDS", 0.001)
    place = FakePlace()
    place.is_full, place.patience_seconds = True, 0.004
    shard = RayShard(CONFIG, place)
    asyncio.run(late())
    assert shard._history == COMMANDS
    assert len(place.started) == 1


def test_an_actor_that_is_slow_to_start_where_there_is_room_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def slow() -> None:
        looks = 0

        def missing(config: ShardConfig, *, squeezed: bool) -> str:
            nonlocal looks
            looks += 1
            if looks == 9:
                ready.set_result(None)
            return ""

        ready = asyncio.get_running_loop().create_future()
        place.started[0].__ray_ready__.remote = lambda: ready  # type: ignore[method-assign]
        place.missing = missing  # type: ignore[method-assign]
        assert await shard.call("gauges") == ()

    monkeypatch.setattr("fleet.shard_actor._LOOK_SECONDS", 0.001)
    place = FakePlace()
    place.patience_seconds = 0.004
    shard = RayShard(CONFIG, place)
    asyncio.run(slow())


@pytest.mark.parametrize("lacks_nodes", [True, False])
def test_a_successor_waits_for_its_cpu_unless_too_few_nodes_are_left(
    monkeypatch: pytest.MonkeyPatch, *, lacks_nodes: bool
) -> None:
    async def die_and_wait() -> None:
        await shard.call("gauges")
        place.is_full, place.lacks_nodes = True, lacks_nodes
        waiting = asyncio.ensure_future(shard.call("gauges"))
        await asyncio.wait_for(place.another.wait(), 9)
        place.is_full = False  # for the one that is squeezed in
        if not lacks_nodes:
            with pytest.raises(NoRoom):
                await waiting
        else:
            await waiting

    monkeypatch.setattr("fleet.shard_actor._LOOK_SECONDS", 0.001)
    place = FakePlace(2)
    place.patience_seconds = 0.0
    shard = RayShard(CONFIG, place)
    asyncio.run(die_and_wait())
    assert place.squeezed == [False, False, True][: len(place.started)]
    assert len(place.started) == (3 if lacks_nodes else 2)
