"""Who wants to hear what happens on a host, and gets told.

Queues are unbounded: a watcher that is slower than the model costs memory, never events. It lives
in one event loop, and so does everybody who calls it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Watchers"]


class Watchers:
    """Queues of event records by host."""

    def __init__(self) -> None:
        self._queues: dict[str, list[asyncio.Queue[bytes]]] = {}

    @contextmanager
    def watch(self, host: str) -> Iterator[asyncio.Queue[bytes]]:
        """A queue that gets the records of whatever happens on a host while the block lasts."""
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues.setdefault(host, []).append(queue)
        try:
            yield queue
        finally:
            self._queues[host].remove(queue)

    def publish(self, host: str, records: bytes) -> None:
        """Tell a host's watchers what has happened, in the form of `Trace.take_events`."""
        if records:
            for queue in self._queues.get(host, ()):
                queue.put_nowait(records)
