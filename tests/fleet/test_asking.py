"""Commands for a shard, in messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from fleet.asking import ask_in_parts
from fleet.shard_actor import Deed, HostUnreachable
from node.api import UpdateCommand, UpdatePolicy
from tests.fleet.rollouts import NEW

COMMANDS = [UpdateCommand(f"h{nr}", 1, 0, NEW, UpdatePolicy()) for nr in range(1000)]


class Shard:
    """Answers each message with its commands, the last that it has first."""

    hosts = ("h0",)

    def __init__(self, dies_at: int = -1) -> None:
        self.dies_at = dies_at
        self.messages: list[int] = []
        self.asked: list[asyncio.Future[Any]] = []
        self.most = 0

    async def call(self, method: str, *args: Any, history: Sequence[Deed] = ()) -> Any:
        (commands,) = args
        assert (method, history) == ("update", commands)
        nr = len(self.messages)
        self.messages.append(len(commands))
        mine = asyncio.get_running_loop().create_future()
        self.asked.append(mine)
        self.most = max(self.most, len(self.asked))
        asyncio.get_running_loop().call_soon(self.answer_last)
        await mine
        if nr == self.dies_at:
            raise HostUnreachable("gone")
        return commands

    def answer_last(self) -> None:
        self.asked.pop().set_result(None)


@pytest.mark.parametrize(
    ("count", "size", "messages"),
    [
        (0, 64, []),
        (1, 64, [1]),
        (20, 64, [8, 8, 4]),
        (50, 64, [13, 13, 13, 11]),
        (1000, 300, [250] * 4),
        (1000, 200, [200] * 5),
        (5, 1, [1] * 5),
        (9, 4, [4, 4, 1]),
    ],
)
def test_a_wave_comes_in_a_few_messages(count: int, size: int, messages: list[int]) -> None:
    shard, taken = Shard(), list[Any]()

    def take(commands: list[UpdateCommand], results: Any) -> None:
        assert results == commands
        taken.extend(commands)

    asyncio.run(ask_in_parts(shard, COMMANDS[:count], size, take))
    assert shard.messages == messages
    assert taken == COMMANDS[:count]
    assert shard.most <= 2


def test_what_is_not_answered_when_a_shard_is_lost_is_dropped() -> None:
    shard, taken = Shard(dies_at=1), list[int]()
    with pytest.raises(HostUnreachable):
        asyncio.run(ask_in_parts(shard, COMMANDS[:40], 10, lambda cs, _: taken.append(len(cs))))
    assert taken == [10]
    assert len(shard.messages) < 4
