"""Who wants to hear what happens on a host, and gets told.

Queues are unbounded: a watcher that is slower than the model costs memory, never events. It lives
in one event loop, and so does everybody who calls it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kernelmodel.sim.trace import Event, decode
from node.api import UpdateResult
from node.calls import HostReply

__all__ = ["EventQueue", "Watchers"]

EventQueue = asyncio.Queue[Sequence[Event]]


class Watchers:
    """Queues of events by host."""

    def __init__(self) -> None:
        self._queues: dict[str, list[EventQueue]] = {}

    @contextmanager
    def watch(self, host: str) -> Iterator[EventQueue]:
        """A queue that gets whatever happens on a host while the block lasts."""
        queue: EventQueue = asyncio.Queue()
        self._queues.setdefault(host, []).append(queue)
        try:
            yield queue
        finally:
            self._queues[host].remove(queue)

    def answered(self, host: str, reply: HostReply) -> None:
        """Tell a host's watchers what a call did."""
        self._publish(host, lambda: list(decode(reply.events)))

    def updated(self, result: UpdateResult) -> None:
        """Tell a host's watchers what an update of a rollout did, if the host records events."""
        self._publish(result.host, lambda: _of_update(result))

    def _publish(self, host: str, events: Callable[[], Sequence[Event]]) -> None:
        queues = self._queues.get(host)
        if queues and (happened := events()):
            for queue in queues:
                queue.put_nowait(happened)


def _of_update(result: UpdateResult) -> Sequence[Event]:
    """The events of the update alone: what calls did before it was told when they did it."""
    events = list(decode(result.events))
    for at, event in enumerate(events):
        if event.name == "update" and event.fields["seq"] == result.seq:
            return events[at:]
    return ()
