"""System calls, events and kexecs in any order, against a reference of a state and three dicts.

The reference knows the rules of the tables in `test_state_machine` and nothing else: the system's
state, each session's, and what each file should hold. After every step the kernel accounts for
every page frame. `LUFLEET_LUO_V4_EXAMPLES` sets how many sequences are tried.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kernelmodel.abi.luo_v4 import LiveupdateEvent, LiveupdateState
from kernelmodel.errors import IoError, KernelError, ModelBug
from kernelmodel.kernel import no_failures
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.luo_v4.hosts import (
    CANCEL,
    FINISH,
    FREEZE,
    FROZEN,
    NORMAL,
    PREPARE,
    PREPARED,
    UPDATED,
    Agent,
    Recorder,
    failing,
    freeze,
    jump,
    power_on,
    with_subsystems,
)

NAMES = st.sampled_from(["a", "b", "c"])
TOKENS = st.integers(0, 2)
EVENTS = st.sampled_from([*LiveupdateEvent, 4])
QUIET = (NORMAL, UPDATED)


@dataclass
class File:
    """A memfd: what it holds; whom its descriptor belongs to is the test's business."""

    content: bytearray
    prepared: int = 0


@dataclass
class Session:
    state: LiveupdateState
    files: dict[int, File] = field(default_factory=dict)
    restored: set[int] = field(default_factory=set)
    fd: int | None = None


def ok(condition: bool, errno: str) -> str:
    return "" if condition else errno


class LuoV4Machine(RuleBasedStateMachine):
    @initialize()
    def power_on(self) -> None:
        self.kernel = power_on()
        self.state = NORMAL
        self.finalized = False
        self.sessions: dict[str, Session] = {}
        self.version = 0
        self.start()

    def start(self) -> None:
        _, ops = with_subsystems(self.kernel, "s")
        self.ops: Recorder = ops["s"]
        self.agent = Agent(self.kernel)
        self.fds: dict[int, File] = {}

    def call(self, expected: str, function: Callable[[], object]) -> bool:
        """Make a call whose errno is known; whether it succeeded."""
        answer = ""
        try:
            function()
        except KernelError as error:
            answer = error.name
        assert answer == expected
        return not answer

    # Files and sessions.

    @rule(pages=st.integers(0, 3), token=TOKENS)
    def new_memfd(self, pages: int, token: int) -> None:
        if len(self.fds) < 6:
            content = bytearray(token.to_bytes(1, "little") * (pages * PAGE_SIZE))
            self.fds[self.agent.memfd(len(content), bytes(content))] = File(content)

    @rule(pick=st.integers(0, 9))
    def write(self, pick: int) -> None:
        """Content may change at any time."""
        fds = [fd for fd, file in self.fds.items() if len(file.content) > 7]
        if fds:
            fd = fds[pick % len(fds)]
            self.version = (self.version + 1) % 256
            self.agent.task.pwrite(fd, bytes([self.version]), 7)
            self.fds[fd].content[7] = self.version

    @rule(pick=st.integers(0, 9), size=st.sampled_from([0, 1, PAGE_SIZE + 1]))
    def resize(self, pick: int, size: int) -> None:
        if self.fds:
            fd = list(self.fds)[pick % len(self.fds)]
            file = self.fds[fd]
            errno = ok(not file.prepared or size == len(file.content), "EPERM")
            if self.call(errno, lambda: self.agent.task.ftruncate(fd, size)):
                file.content[:] = file.content[:size].ljust(size, b"\0")

    @rule(name=NAMES)
    def create(self, name: str) -> None:
        errno = ok(self.state in QUIET, "EAGAIN") or ok(name not in self.sessions, "EEXIST")
        found: list[int] = []
        if self.call(errno, lambda: found.append(self.agent.create_session(name))):
            self.sessions[name] = Session(NORMAL, fd=found[0])

    @rule(name=NAMES)
    def retrieve(self, name: str) -> None:
        session = self.sessions.get(name)
        errno = (
            ok(self.state is UPDATED, "EAGAIN")
            or ok(session is not None, "ENOENT")
            or ok(session is not None and session.fd is None, "EADDRINUSE")
        )
        found: list[int] = []
        if self.call(errno, lambda: found.append(self.agent.retrieve_session(name))):
            assert session is not None
            session.fd = found[0]

    def opened(self, name: str) -> tuple[Session, int] | None:
        session = self.sessions.get(name)
        return (session, session.fd) if session is not None and session.fd is not None else None

    @rule(name=NAMES, token=TOKENS, pick=st.integers(0, 9))
    def preserve(self, name: str, token: int, pick: int) -> None:
        found = self.opened(name)
        if found is None or not self.fds:
            return
        session, sfd = found
        fd = list(self.fds)[pick % len(self.fds)]
        errno = ok(self.state in QUIET and session.state is NORMAL, "EBUSY") or ok(
            token not in session.files, "EEXIST"
        )
        if self.call(errno, lambda: self.agent.preserve_fd(sfd, fd, token)):
            session.files[token] = self.fds[fd]

    @rule(name=NAMES, token=TOKENS)
    def unpreserve(self, name: str, token: int) -> None:
        found = self.opened(name)
        if found is None:
            return
        session, sfd = found
        errno = ok(self.state in QUIET and session.state is NORMAL, "EBUSY") or ok(
            token in session.files, "ENOENT"
        )
        if self.call(errno, lambda: self.agent.unpreserve_fd(sfd, token)):
            del session.files[token]

    @rule(name=NAMES, token=TOKENS)
    def restore(self, name: str, token: int) -> None:
        found = self.opened(name)
        if found is None:
            return
        session, sfd = found
        errno = (
            ok(self.state is UPDATED and session.state is UPDATED, "EBUSY")
            or ok(token in session.files, "ENOENT")
            or ok(token not in session.restored, "EADDRINUSE")
        )
        fds: list[int] = []
        if self.call(errno, lambda: fds.append(self.agent.restore_fd(sfd, token))):
            session.restored.add(token)
            file = self.fds[fds[0]] = session.files[token]
            assert self.agent.task.pread(fds[0], 1 << 20, 0) == file.content

    @rule(name=NAMES)
    def close(self, name: str) -> None:
        found = self.opened(name)
        if found is not None:
            self.undo(found[0])
            del self.sessions[name]
            self.agent.task.close(found[1])

    # Events: first what the reference thinks of it, then the kernel.

    def prepare_session(self, session: Session) -> str:
        """One session's PREPARE; a memfd is prepared once, a finalised KHO takes no files."""
        if session.state is not NORMAL:
            return "EBUSY"
        done: list[File] = []
        for file in session.files.values():
            if file.prepared or self.finalized:
                for other in done:
                    other.prepared -= 1
                return "EBUSY"
            file.prepared += 1
            done.append(file)
        session.state = PREPARED
        return ""

    def undo(self, session: Session) -> None:
        if session.state in {PREPARED, FROZEN}:
            for file in session.files.values():
                file.prepared -= 1
            session.state = NORMAL

    def end(self, session: Session) -> None:
        if session.state is UPDATED:
            session.files.clear()
            session.restored.clear()
            session.state = NORMAL

    @rule(name=NAMES, event=EVENTS)
    def session_event(self, name: str, event: LiveupdateEvent) -> None:
        found = self.opened(name)
        if found is None:
            return
        session, sfd = found
        errno = ""
        if event == PREPARE:
            errno = self.prepare_session(session)
        elif event == FREEZE:
            errno = ok(session.state is PREPARED, "EBUSY")
            session.state = session.state if errno else FROZEN
        elif event == CANCEL:
            self.undo(session)
        elif event == FINISH:
            self.end(session)
        else:
            errno = "EOPNOTSUPP"
        self.call(errno, lambda: self.agent.session_set_event(sfd, event))

    @rule(event=EVENTS, fail=st.booleans())
    def event(self, event: LiveupdateEvent, fail: bool) -> None:
        errno = ""
        if event == PREPARE:
            errno = self.system_prepare(fail)
        elif event == CANCEL:
            errno = ok(self.state in {PREPARED, FROZEN}, "EINVAL")
            if not errno:
                self.back_to_normal()
        elif event == FINISH:
            errno = ok(self.state is UPDATED, "EINVAL")
            if not errno:
                for session in self.sessions.values():
                    self.end(session)
                self.sessions = {n: s for n, s in self.sessions.items() if s.fd is not None}
                self.state = NORMAL
        else:
            errno = "EOPNOTSUPP"
        self.call(errno, lambda: self.agent.set_event(event))
        self.ops.fail.clear()

    def system_prepare(self, fail: bool) -> str:
        if self.state is not NORMAL:
            return "EINVAL"
        done: list[Session] = []
        for session in self.sessions.values():
            errno = self.prepare_session(session)
            if errno:
                for other in done:
                    self.undo(other)
                return errno
            done.append(session)
        if fail:
            self.ops.fail["prepare"] = IoError()
            for session in done:
                self.undo(session)
            return "EIO"
        self.state = PREPARED
        self.finalized = True
        return ""

    def back_to_normal(self) -> None:
        for session in self.sessions.values():
            self.undo(session)
        self.state = NORMAL
        self.finalized = False

    @rule(fail=st.sampled_from(["", "", "file", "subsystem", "killed"]))
    def freeze(self, fail: str) -> None:
        """reboot(2) that gets no further than the freeze."""
        errno = ""
        if self.state is PREPARED:
            settled = all(session.state is PREPARED for session in self.sessions.values())
            files = any(session.files for session in self.sessions.values())
            if fail == "killed":
                failing(self.kernel, "down_write_killable", error=IoError())
                errno = "EAGAIN"
            elif fail == "file" and files and settled:
                failing(self.kernel, "luo_file_freeze", error=IoError())
                errno = "EIO"
            elif not settled:
                errno = "EBUSY"
            elif fail == "subsystem":
                self.ops.fail["freeze"] = IoError()
                errno = "EIO"
            if not errno:
                self.state = FROZEN
                for session in self.sessions.values():
                    session.state = FROZEN
            elif errno != "EAGAIN":
                self.back_to_normal()
        self.call(errno, lambda: freeze(self.kernel))
        self.kernel.fail_function = no_failures
        self.ops.fail.clear()

    @rule()
    def kexec(self) -> None:
        """The jump, if freezing lets it happen."""
        settled = all(session.state is PREPARED for session in self.sessions.values())
        if self.state is PREPARED and not settled:
            self.freeze("")
            return
        over = self.finalized
        if (
            over
            and self.state is FROZEN
            and not all(session.state is FROZEN for session in self.sessions.values())
        ):
            return  # the stale entry that this leaves is `test_session`'s
        self.kernel = jump(self.kernel)
        self.state = UPDATED if over else NORMAL
        self.finalized = False
        self.sessions = {
            name: Session(
                UPDATED, {t: File(bytearray(f.content)) for t, f in session.files.items()}
            )
            for name, session in self.sessions.items()
            if over
        }
        self.start()

    # What must hold after every step.

    @invariant()
    def states_are_the_references(self) -> None:
        assert self.agent.state() is self.state
        for session in self.sessions.values():
            if session.fd is not None:
                assert self.agent.session_state(session.fd) is session.state

    @invariant()
    def files_hold_what_they_should(self) -> None:
        for fd, file in self.fds.items():
            assert self.agent.task.pread(fd, 1 << 20, 0) == file.content

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        try:
            validate_kernel(self.kernel, [self.agent.task])
        except ModelBug as error:
            raise AssertionError(f"{error}; {self.kernel.messages}") from error


LuoV4Machine.TestCase.settings = settings(
    max_examples=int(os.environ.get("LUFLEET_LUO_V4_EXAMPLES", "40")),
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
)
TestLuoV4Machine = LuoV4Machine.TestCase
