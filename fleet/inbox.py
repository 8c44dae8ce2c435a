"""Requests of people on their way to the driver, and its answers on their way back."""

from __future__ import annotations

import asyncio

from fleet.steps import RequestKind

__all__ = ["Inbox", "RolloutRefused"]


class RolloutRefused(Exception):
    """A request that makes no sense in the rollout's current state."""


class Inbox:
    """What was asked and not answered yet. `wakeup` is set while there is something in it."""

    def __init__(self) -> None:
        self.wakeup = asyncio.Event()
        self._asked: list[tuple[RequestKind, str, asyncio.Future[str]]] = []

    def __bool__(self) -> bool:
        return bool(self._asked)

    async def ask(self, kind: RequestKind, why: str) -> None:
        """Put in a request and wait until it is obeyed.

        Raises:
            RolloutRefused: it was not.
        """
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked.append((kind, why, answer))
        self.wakeup.set()
        if refusal := await answer:
            raise RolloutRefused(refusal)

    def take(self) -> list[tuple[RequestKind, str, asyncio.Future[str]]]:
        """Everything in it: what is asked, why, and where `answer` puts what came of it."""
        self.wakeup.clear()
        asked, self._asked = self._asked, []
        return asked

    @staticmethod
    def answer(future: asyncio.Future[str], refusal: str) -> None:
        """Tell whoever asked, if they still wait; "" says that it was obeyed."""
        if not future.done():
            future.set_result(refusal)

    def refuse_all(self, why: str) -> None:
        """Nobody will obey any more."""
        for _, _, future in self.take():
            self.answer(future, why)
