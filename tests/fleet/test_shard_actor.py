"""A shard's actor and its successors, on a Ray that fails when it is told to."""

from __future__ import annotations

import asyncio
from types import ModuleType
from typing import Any

import pytest

from fleet.shard_actor import HostUnreachable, RayShard
from node.api import ShardConfig, UpdateCommand, UpdatePolicy
from tests.fleet.rollouts import NEW, racks


class ActorDied(Exception):
    """Stands in for Ray's error."""


class ObjectLost(Exception):
    """Stands in for Ray's error, too."""


class FakeActor:
    """An actor handle of a Ray that is none: dies at the calls that it is told to."""

    def __init__(self, ray: FakeRay, config: ShardConfig) -> None:
        self.ray = ray
        self.config = config

    @property
    def ask(self) -> FakeActor:
        return self

    def remote(self, method: str, *args: object) -> Any:
        async def answer() -> tuple[int, object]:
            await self.ray.held.get(method, asyncio.sleep)(0)
            self.ray.calls += 1
            self.ray.asked.append(args)
            if self.ray.calls in self.ray.dies_at:
                raise self.ray.error
            return self.config.incarnation, args

        return asyncio.ensure_future(answer())


class FakeRay(ModuleType):
    """As much of Ray as a shard's handle uses."""

    def __init__(self, *dies_at: int, error: type[Exception] = ActorDied) -> None:
        super().__init__("ray")
        self.dies_at = dies_at
        self.error = error
        self.held: dict[str, Any] = {}  # method -> what its answer waits for
        self.calls = 0
        self.asked: list[tuple[object, ...]] = []
        self.started: list[FakeActor] = []
        self.killed: list[FakeActor] = []
        self.exceptions = ModuleType("exceptions")
        self.exceptions.__dict__.update(
            RayActorError=ActorDied, ObjectLostError=ObjectLost, OutOfMemoryError=MemoryError
        )

    def kill(self, actor: FakeActor) -> None:
        self.killed.append(actor)

    def start(self, config: ShardConfig) -> FakeActor:
        self.started.append(FakeActor(self, config))
        return self.started[-1]


COMMANDS = [UpdateCommand(f"r1-h0{nr}", 1, nr, NEW, UpdatePolicy()) for nr in (1, 2)]
CONFIG = ShardConfig(seed=7, hosts=racks(2), vms=())


def shard_on(ray: FakeRay) -> RayShard:
    return RayShard(CONFIG, ray, ray.start)


@pytest.mark.parametrize("error", [ActorDied, ObjectLost, MemoryError])
def test_a_dead_actor_is_rebuilt_with_what_was_answered_and_asked_again(
    error: type[Exception],
) -> None:
    ray = FakeRay(2, error=error)
    shard = shard_on(ray)
    for command in COMMANDS:
        answer = asyncio.run(shard.call("update", [command], history=[command]))
        assert answer == ([command],)
    assert [actor.config.commands for actor in ray.started] == [(), (COMMANDS[0],)]
    assert [actor.config.incarnation for actor in ray.started] == [0, 1]
    assert ray.killed == [ray.started[0]]


def test_a_late_reply_of_an_actor_that_was_given_up_is_not_counted() -> None:
    """Its successor was started without the deed, and has to be the one that does it."""

    async def late() -> None:
        first_is_told, second_is_told = asyncio.Event(), asyncio.Event()
        told = iter([first_is_told, second_is_told])
        ray.held["update"] = lambda _: next(told).wait()
        updating = asyncio.ensure_future(shard.call("update", [COMMANDS[0]], history=COMMANDS[:1]))
        await asyncio.sleep(0)
        await shard.call("gauges")  # finds the actor dead; its successor answers
        assert [actor.config.incarnation for actor in ray.started] == [0, 1]
        first_is_told.set()
        for _ in range(9):  # turns of the event loop
            await asyncio.sleep(0)
        assert ray.calls == 3
        assert shard._history == []
        assert not updating.done()
        second_is_told.set()
        assert await updating == ([COMMANDS[0]],)

    ray = FakeRay(1)
    shard = shard_on(ray)
    asyncio.run(late())
    assert shard._history == COMMANDS[:1]


def test_deeds_are_replayed_in_the_order_of_the_calls_whichever_is_answered_first() -> None:
    async def overtaken() -> None:
        may_answer = asyncio.Event()
        ray.held["update"] = lambda _: may_answer.wait()
        calls = [
            asyncio.ensure_future(shard.call(method, [command], history=[command]))
            for method, command in zip(("update", "call_host"), COMMANDS, strict=True)
        ]
        await calls[1]
        may_answer.set()
        await calls[0]

    ray = FakeRay()
    shard = shard_on(ray)
    asyncio.run(overtaken())
    assert shard._history == COMMANDS


def test_calls_in_flight_are_repeated_in_their_order() -> None:
    async def both() -> None:
        calls = [shard.call("update", [command], history=[command]) for command in COMMANDS]
        await asyncio.gather(*calls)

    ray = FakeRay(1, 2)
    shard = shard_on(ray)
    asyncio.run(both())
    assert ray.asked[2:] == [([command],) for command in COMMANDS]


def test_a_shard_that_dies_again_and_again_is_given_up() -> None:
    shard = shard_on(FakeRay(1, 2, 3))
    with pytest.raises(HostUnreachable, match=r"the actor of r1-h01 \(2 hosts\) died 3 times"):
        asyncio.run(shard.call("update", COMMANDS, history=COMMANDS))


def test_two_calls_that_see_the_same_death_rebuild_the_actor_once() -> None:
    ray = FakeRay(1, 2)
    shard = shard_on(ray)

    async def both() -> None:
        await asyncio.gather(shard.call("gauges"), shard.call("gauges"))

    asyncio.run(both())
    assert len(ray.started) == 2
    assert len(ray.killed) == 1


def test_an_exception_of_the_shard_is_not_taken_for_a_death() -> None:
    ray = FakeRay(1, error=KeyError)
    with pytest.raises(KeyError):
        asyncio.run(shard_on(ray).call("gauges"))
    assert len(ray.started) == 1
