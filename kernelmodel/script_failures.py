"""Which calls the `fail` lines of a script make fail: one way to count, for whoever plays it.

Every line counts by itself: each call from the line on, be it one that another line makes fail. If
several lines name the same call, the first of them says with which error; all are used up.

Happy path: `add` what a line asks for, then `call` at every call of a function.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ScriptFailures"]


@dataclass(slots=True)
class _Failure:
    function: str
    calls_left: int
    error: str


@dataclass(slots=True)
class ScriptFailures:
    """What one boot's `fail` lines have asked for so far and is still to come."""

    _pending: list[_Failure] = field(default_factory=list)

    def add(self, function: str, call: int, error: str) -> None:
        """Let call number `call` of a function fail, 1 being the next."""
        self._pending.append(_Failure(function, call, error))

    def call(self, function: str) -> str:
        """Count a call of a function; the error's name if it is to fail, otherwise ""."""
        error = ""
        for failure in [one for one in self._pending if one.function == function]:
            failure.calls_left -= 1
            if failure.calls_left == 0:
                self._pending.remove(failure)
                error = error or failure.error
        return error

    @property
    def functions(self) -> frozenset[str]:
        """Those of which a call is still to fail."""
        return frozenset(failure.function for failure in self._pending)

    def clear(self) -> None:
        """Forget everything: another kernel runs."""
        self._pending.clear()
