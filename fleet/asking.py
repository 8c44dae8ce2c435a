"""What goes to a shard, in messages of a bearable size.

A message is answered as a whole, and while the driver deals with the answer an actor that had no
other would wait. So the next one of a wave is always on its way before one is answered; answers are
handed on in the order of the messages, whichever comes first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from fleet.launcher import ShardHandle
from node.api import HostGauges, UpdateCommand, UpdateResult

__all__ = ["ask_in_parts", "boot_in_parts"]

#: Messages that a shard has at once.
_AHEAD: Final = 2
#: A shard's share of a wave comes in so many messages at least, if that leaves each so many
#: commands: little is left to deal with when the last one is answered and nobody computes.
_PARTS: Final = 4
_FEW: Final = 8
#: Hosts that a shard boots before it can be told to stop: a fraction of a second.
_BOOTS: Final = 64


async def ask_in_parts(
    shard: ShardHandle,
    commands: Sequence[UpdateCommand],
    size: int,
    take: Callable[[list[UpdateCommand], list[UpdateResult]], None],
) -> None:
    """Have a shard carry out commands, `size` to a message or fewer; `take` each one's results.

    Raises:
        HostUnreachable: the shard cannot be kept alive. What is not answered then is dropped, as
            it is when this is cancelled or `take` fails.
    """
    size = min(size, max(_FEW, -(-len(commands) // _PARTS)))
    parts = deque(list(commands[at : at + size]) for at in range(0, len(commands), size))
    asked: deque[tuple[list[UpdateCommand], asyncio.Future[list[UpdateResult]]]] = deque()
    try:
        while parts or asked:
            while parts and len(asked) < _AHEAD:
                part = parts.popleft()
                call = shard.call("update", part, history=part)
                asked.append((part, asyncio.ensure_future(call)))
            part, answer = asked[0]
            results = await answer
            asked.popleft()
            take(part, results)
    finally:
        for _, answer in asked:
            answer.cancel()
        await asyncio.gather(*(answer for _, answer in asked), return_exceptions=True)


async def boot_in_parts(shard: ShardHandle) -> dict[str, HostGauges]:
    """Have a shard boot its hosts; every host's own counters.

    Raises:
        HostUnreachable: the shard cannot be kept alive.
    """
    gauges: dict[str, HostGauges] = {}
    for at in range(0, len(shard.hosts), _BOOTS):
        gauges |= await shard.call("gauges", shard.hosts[at : at + _BOOTS])
    return gauges
