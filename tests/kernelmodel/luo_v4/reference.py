"""What LUO v4's rules come to, with nothing of the kernel in it: a state, sessions, files.

Each method answers with the errno that the call should return ("" for success) and moves on as the
call should. Retrieving, preserving and the like are so simple that the machine does them itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kernelmodel.abi.luo_v4 import LiveupdateEvent, LiveupdateState
from tests.kernelmodel.luo_v4.hosts import (
    CANCEL,
    FINISH,
    FREEZE,
    FROZEN,
    NORMAL,
    PREPARE,
    PREPARED,
    UPDATED,
)

QUIET = (NORMAL, UPDATED)


def ok(condition: bool, errno: str) -> str:
    return "" if condition else errno


@dataclass
class File:
    """A memfd: what it holds, and how many sessions have it prepared."""

    content: bytearray
    prepared: int = 0


@dataclass
class Session:
    state: LiveupdateState
    files: dict[int, File] = field(default_factory=dict)
    restored: set[int] = field(default_factory=set)
    fd: int | None = None

    def prepare(self, *, finalized: bool) -> str:
        """A memfd is prepared once, and a finalised KHO takes no files."""
        if self.state is not NORMAL:
            return "EBUSY"
        done: list[File] = []
        for file in self.files.values():
            if file.prepared or finalized:
                for other in done:
                    other.prepared -= 1
                return "EBUSY"
            file.prepared += 1
            done.append(file)
        self.state = PREPARED
        return ""

    def freeze(self) -> str:
        if self.state is not PREPARED:
            return "EBUSY"
        self.state = FROZEN
        return ""

    def cancel(self) -> str:
        if self.state in {PREPARED, FROZEN}:
            for file in self.files.values():
                file.prepared -= 1
            self.state = NORMAL
        return ""

    def finish(self) -> str:
        if self.state is UPDATED:
            self.files.clear()
            self.restored.clear()
            self.state = NORMAL
        return ""

    def event(self, event: LiveupdateEvent, *, finalized: bool) -> str:
        if event == PREPARE:
            return self.prepare(finalized=finalized)
        steps = {FREEZE: self.freeze, CANCEL: self.cancel, FINISH: self.finish}
        return steps[event]() if event in steps else "EOPNOTSUPP"


@dataclass
class Reference:
    """The system."""

    state: LiveupdateState = NORMAL
    finalized: bool = False
    sessions: dict[str, Session] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether every session can be frozen."""
        return all(session.state is PREPARED for session in self.sessions.values())

    def event(self, event: LiveupdateEvent, *, subsystem_fails: bool) -> str:
        """By the device."""
        if event == PREPARE:
            return self.prepare(subsystem_fails=subsystem_fails)
        if event == CANCEL:
            errno = ok(self.state in {PREPARED, FROZEN}, "EINVAL")
            return errno or self.back_to_normal()
        if event == FINISH:
            return self.finish()
        return "EOPNOTSUPP"

    def prepare(self, *, subsystem_fails: bool) -> str:
        if self.state is not NORMAL:
            return "EINVAL"
        errno, done = "", []
        for session in self.sessions.values():
            errno = session.prepare(finalized=False)
            if errno:
                break
            done.append(session)
        if errno or subsystem_fails:
            for session in done:
                session.cancel()
            return errno or "EIO"
        self.state, self.finalized = PREPARED, True
        return ""

    def back_to_normal(self) -> str:
        for session in self.sessions.values():
            session.cancel()
        self.state, self.finalized = NORMAL, False
        return ""

    def finish(self) -> str:
        if self.state is not UPDATED:
            return "EINVAL"
        for session in self.sessions.values():
            session.finish()
        self.sessions = {n: s for n, s in self.sessions.items() if s.fd is not None}
        self.state = NORMAL
        return ""

    def freeze(self, fails: str) -> str:
        """By reboot(2); `fails` is the errno of what was made to fail, if it comes to that."""
        if self.state is not PREPARED:
            return ""
        if fails == "EAGAIN":
            return fails
        if not self.settled or fails:
            fails = fails if self.settled else "EBUSY"
            self.back_to_normal()
            return fails
        for session in self.sessions.values():
            session.freeze()
        self.state = FROZEN
        return ""
