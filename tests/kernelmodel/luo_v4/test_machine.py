"""System calls, events and kexecs in any order, against a reference of a state and three dicts.

The reference knows the rules of the tables in `test_state_machine` and nothing else: the system's
state, each session's, and what each file should hold. After every step the kernel accounts for
every page frame. `LUFLEET_LUO_V4_EXAMPLES` sets how many sequences are tried.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kernelmodel.abi.luo_v4 import LiveupdateEvent
from kernelmodel.errors import IoError, KernelError, ModelBug
from kernelmodel.kernel import no_failures
from kernelmodel.memory import PAGE_SIZE
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.luo_v4.hosts import (
    FROZEN,
    NORMAL,
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
from tests.kernelmodel.luo_v4.reference import QUIET, File, Reference, Session, ok

NAMES = st.sampled_from(["a", "b", "c"])
TOKENS = st.integers(0, 2)
EVENTS = st.sampled_from([*LiveupdateEvent, 4])


class LuoV4Machine(RuleBasedStateMachine):
    @initialize()
    def power_on(self) -> None:
        self.kernel = power_on()
        self.known = Reference()
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
        errno = ok(self.known.state in QUIET, "EAGAIN") or ok(
            name not in self.known.sessions, "EEXIST"
        )
        found: list[int] = []
        if self.call(errno, lambda: found.append(self.agent.create_session(name))):
            self.known.sessions[name] = Session(NORMAL, fd=found[0])

    @rule(name=NAMES)
    def retrieve(self, name: str) -> None:
        session = self.known.sessions.get(name)
        errno = (
            ok(self.known.state is UPDATED, "EAGAIN")
            or ok(session is not None, "ENOENT")
            or ok(session is not None and session.fd is None, "EADDRINUSE")
        )
        found: list[int] = []
        if self.call(errno, lambda: found.append(self.agent.retrieve_session(name))):
            assert session is not None
            session.fd = found[0]

    def opened(self, name: str) -> tuple[Session, int] | None:
        session = self.known.sessions.get(name)
        return (session, session.fd) if session is not None and session.fd is not None else None

    @rule(name=NAMES, token=TOKENS, pick=st.integers(0, 9))
    def preserve(self, name: str, token: int, pick: int) -> None:
        found = self.opened(name)
        if found is None or not self.fds:
            return
        session, sfd = found
        fd = list(self.fds)[pick % len(self.fds)]
        errno = ok(self.known.state in QUIET and session.state is NORMAL, "EBUSY") or ok(
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
        errno = ok(self.known.state in QUIET and session.state is NORMAL, "EBUSY") or ok(
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
            ok(self.known.state is UPDATED and session.state is UPDATED, "EBUSY")
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
            found[0].cancel()
            del self.known.sessions[name]
            self.agent.task.close(found[1])

    # Events: first what the reference thinks of it, then the kernel.

    @rule(name=NAMES, event=EVENTS)
    def session_event(self, name: str, event: LiveupdateEvent) -> None:
        found = self.opened(name)
        if found is not None:
            errno = found[0].event(event, finalized=self.known.finalized)
            self.call(errno, lambda: self.agent.session_set_event(found[1], event))

    @rule(event=EVENTS, fail=st.booleans())
    def event(self, event: LiveupdateEvent, fail: bool) -> None:
        errno = self.known.event(event, subsystem_fails=fail)
        if fail:
            self.ops.fail["prepare"] = IoError()
        self.call(errno, lambda: self.agent.set_event(event))
        self.ops.fail.clear()

    @rule(fail=st.sampled_from(["", "", "file", "subsystem", "killed"]))
    def freeze(self, fail: str) -> None:
        """reboot(2) that gets no further than the freeze."""
        files = any(session.files for session in self.known.sessions.values())
        fails = ""
        if fail == "killed":
            failing(self.kernel, "down_write_killable", error=IoError())
            fails = "EAGAIN"
        elif fail == "subsystem":
            self.ops.fail["freeze"] = IoError()
            fails = "EIO"
        elif fail == "file" and files and self.known.settled:
            failing(self.kernel, "luo_file_freeze", error=IoError())
            fails = "EIO"
        self.call(self.known.freeze(fails), lambda: freeze(self.kernel))
        self.kernel.fail_function = no_failures
        self.ops.fail.clear()

    @rule()
    def kexec(self) -> None:
        """The jump, if freezing lets it happen."""
        known = self.known
        if known.state is PREPARED and not known.settled:
            self.freeze("")
            return
        if known.state is FROZEN and any(
            session.state is not FROZEN for session in known.sessions.values()
        ):
            return  # the stale entry that this leaves is `test_session`'s
        self.kernel = jump(self.kernel)
        self.known = Reference()
        if known.finalized:
            self.known.state = UPDATED
            for name, session in known.sessions.items():
                files = {token: File(file.content[:]) for token, file in session.files.items()}
                self.known.sessions[name] = Session(UPDATED, files)
        self.start()

    # What must hold after every step.

    @invariant()
    def states_are_the_references(self) -> None:
        assert self.agent.state() is self.known.state
        for session in self.known.sessions.values():
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
