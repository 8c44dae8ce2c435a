"""Rules about sessions: what agents do with /dev/liveupdate, and what they do wrong."""

from __future__ import annotations

import struct

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from kernelmodel.abi.luo import (
    LIVEUPDATE_CREATE_SESSION,
    LIVEUPDATE_RETRIEVE_SESSION,
    LIVEUPDATE_SESSION_FINISH,
    LIVEUPDATE_SESSION_GET_NAME,
    LIVEUPDATE_SESSION_PRESERVE_FD,
    LIVEUPDATE_SESSION_RETRIEVE_FD,
)
from kernelmodel.errors import KernelError
from kernelmodel.fs import UserBuffer
from kernelmodel.validate import validate_kernel
from tests.model.file_rules import NOT_OPEN, FileRules
from tests.model.known import NAMES, PICK, TOKENS, File, Huge, Session

#: Errors that a retrieve may meet where memory or the pool is short.
SHORT = {"ENOMEM", "ENOSPC"}
READ_ONLY = st.sampled_from([False, False, False, True])


class SessionRules(FileRules):
    """`sessions` are outgoing, by descriptor, `retrieved` those of the kernel before.

    `incoming` are those that nobody has retrieved yet; without a `device` there are none.
    """

    device: int | None
    sessions: dict[int, Session]
    retrieved: dict[int, Session]
    incoming: dict[str, Session]
    #: Whether something was lost for good in this kernel.
    losses: bool

    def pick_session(self, pick: int, first: str = "sessions") -> int:
        """A session's descriptor, mostly of the kind that an operation is for."""
        fds = [*self.sessions, *self.retrieved]
        if first == "retrieved":
            fds.reverse()
        return fds[max(0, pick % (2 * len(fds)) - len(fds))] if fds else NOT_OPEN - 1

    def held_files(self) -> list[File]:
        """Files that a live update holds: preserved, or retrieved and not finished."""
        sessions = [*self.sessions.values(), *self.retrieved.values()]
        return [file for session in sessions for file in session.files.values() if file.held]

    def request(self, fd: int, cmd: int, arg: bytes, *, read_only: bool) -> int:
        """An ioctl; the descriptor in its answer. Of a read-only argument there is none: -1."""
        user: UserBuffer = arg if read_only else bytearray(arg)
        try:
            self.task.ioctl(fd, cmd, user)
        except KernelError as error:
            if read_only and error.name == "EFAULT":
                return -1
            raise
        assert not read_only, "an answer went to memory that cannot be written"
        return struct.unpack_from("<i", user, 4)[0]  # type: ignore[no-any-return]

    # Outgoing.

    @precondition(lambda self: self.device is not None)
    @rule(name=NAMES, read_only=READ_ONLY)
    def create_session(self, name: str, read_only: bool) -> None:
        assert self.device is not None
        device = self.device
        taken = name in {session.name for session in self.sessions.values()}
        arg = struct.pack("<Ii64s", 72, 0, name.encode())
        fd = self.attempt(
            lambda: self.request(device, LIVEUPDATE_CREATE_SESSION, arg, read_only=read_only),
            self.why_no_fd("EEXIST" if taken else ""),
        )
        if fd is not None and fd >= 0:
            self.sessions[fd] = Session(name)

    @precondition(lambda self: self.files and self.sessions)
    @rule(pick=PICK, file=PICK, token=TOKENS, read_only=READ_ONLY)
    def preserve(self, pick: int, file: int, token: int, read_only: bool) -> None:
        self._preserve(self.pick_session(pick), self.pick_file(file), token, read_only=read_only)

    @precondition(lambda self: self.device is not None)
    @rule(name=NAMES)
    def preserve_everything(self, name: str) -> None:
        """As an agent does before a live update, with one file at a time and no token twice."""
        if name not in {session.name for session in self.sessions.values()}:
            self.create_session(name, read_only=False)
        for session, known in self.sessions.items():
            if known.name == name:
                for fd in sorted(self.files):
                    self._preserve(session, fd, 100 + fd, read_only=False)

    @precondition(lambda self: self.files and self.sessions and self.hog is None)
    @rule(pick=PICK, file=PICK, token=TOKENS)
    def preserve_at_last(self, pick: int, file: int, token: int) -> None:
        """Its first, second, third, … allocation fails, until none does."""
        session, fd = self.pick_session(pick), self.pick_file(file)
        if self._why_no_preserve(session, fd, token):
            return
        for at in range(60):
            self.armed = at
            self._preserve(session, fd, token, read_only=False)
            validate_kernel(self.kernel, [self.task, self.other])
            if token in self.sessions[session].files:
                return
        assert isinstance(self.files[fd], Huge), "never succeeds"  # the pool is exhausted

    def _preserve(self, session: int, fd: int, token: int, *, read_only: bool) -> None:
        arg = struct.pack("<IiQ", 16, fd, token)
        done = self.attempt(
            lambda: self.request(session, LIVEUPDATE_SESSION_PRESERVE_FD, arg, read_only=read_only),
            self._why_no_preserve(session, fd, token),
            pool=isinstance(self.files.get(fd), Huge),
        )
        if done is not None:
            self.sessions[session].hold(token, self.files[fd])

    def _why_no_preserve(self, session: int, fd: int, token: int) -> str:
        if session not in self.sessions:
            return "EINVAL" if session in self.retrieved else "EBADF"
        if token in self.sessions[session].files:
            return "EEXIST"
        if fd not in self.files:
            return "EBADF"
        if isinstance(self.files[fd], Huge) and self.kernel.release.hugemfd is None:
            return "ENOENT"
        return "EBUSY" if self.files[fd].held else ""

    @precondition(lambda self: self.sessions or self.retrieved)
    @rule(pick=PICK)
    def close_session(self, pick: int) -> None:
        fd = self.pick_session(pick)
        self.task.close(fd)
        (self.sessions.pop(fd, None) or self.retrieved.pop(fd)).let_go()

    # Incoming.

    @precondition(lambda self: self.incoming)
    @rule()
    def retrieve_everything(self) -> None:
        """As an agent does after a live update."""
        for name in sorted(self.incoming):
            self.retrieve_session(name, read_only=False)
        for fd, session in self.retrieved.items():
            for token in sorted(session.files):
                self._retrieve_fd(fd, token, read_only=False)

    @precondition(lambda self: self.device is not None)
    @rule(name=NAMES, read_only=READ_ONLY)
    def take_session(self, name: str, read_only: bool) -> None:
        self.retrieve_session(name, read_only=read_only)

    def retrieve_session(self, name: str, *, read_only: bool) -> None:
        """One whose answer cannot be written is finished at once."""
        assert self.device is not None
        device = self.device
        why = "" if name in self.incoming else "ENOENT"
        if name in {session.name for session in self.retrieved.values()}:
            why = "EINVAL"
        arg = struct.pack("<Ii64s", 72, 0, name.encode())
        fd = self.attempt(
            lambda: self.request(device, LIVEUPDATE_RETRIEVE_SESSION, arg, read_only=read_only),
            self.why_no_fd(why),
        )
        if fd is not None:
            session = self.incoming.pop(name)
            if fd >= 0:
                self.retrieved[fd] = session

    @precondition(lambda self: self.retrieved)
    @rule(pick=PICK, token=TOKENS, known=PICK, read_only=READ_ONLY)
    def retrieve_fd(self, pick: int, token: int, known: int, read_only: bool) -> None:
        fd = self.pick_session(pick, "retrieved")
        tokens = sorted(self.retrieved[fd].files) if fd in self.retrieved else []
        if tokens and known % 4:
            token = tokens[known % len(tokens)]
        self._retrieve_fd(fd, token, read_only=read_only)

    def _retrieve_fd(self, fd: int, token: int, *, read_only: bool) -> None:
        """What failed once for want of memory fails for ever, and may have lost pages."""
        session = self.retrieved.get(fd)
        arg = struct.pack("<IiQ", 16, 0, token)
        cmd = LIVEUPDATE_SESSION_RETRIEVE_FD
        if session is None:
            self.attempt(lambda: self.request(fd, cmd, arg, read_only=read_only), "EINVAL")
            return
        file = session.files.get(token)
        why = self.why_no_fd("" if file is not None else "ENOENT")
        if token in session.failed and not why:
            try:
                self.request(fd, cmd, arg, read_only=read_only)
            except KernelError as error:
                assert error.name in SHORT  # noqa: PT017 # whichever it was at first
                return
            raise AssertionError("a retrieve that failed succeeds later")
        pool = isinstance(file, Huge)
        number = self.attempt(
            lambda: self.request(fd, cmd, arg, read_only=read_only), why, pool=pool
        )
        if file is None or why:
            return
        if number is None:
            session.failed.add(token)
            self.losses = True
            return
        session.fetched.add(token)
        if number >= 0:
            self.files[number] = file

    @precondition(lambda self: self.sessions or self.retrieved)
    @rule(pick=PICK)
    def finish(self, pick: int) -> None:
        fd = self.pick_session(pick, "retrieved")
        why = "" if fd in self.retrieved else "EINVAL"
        self.attempt(lambda: self.task.finish_session(fd), why)
        if not why:
            self.retrieved[fd].let_go()

    # What is wrong with a request: nothing may come of it.

    @rule(
        pick=PICK,
        cmd=st.sampled_from(
            [
                LIVEUPDATE_CREATE_SESSION,
                LIVEUPDATE_RETRIEVE_SESSION,
                LIVEUPDATE_SESSION_PRESERVE_FD,
                LIVEUPDATE_SESSION_RETRIEVE_FD,
                LIVEUPDATE_SESSION_FINISH,
                LIVEUPDATE_SESSION_GET_NAME,
                LIVEUPDATE_CREATE_SESSION | 0x4008 << 16,
                0xBA7F,
            ]
        ),
        size=st.sampled_from([0, 4, 8, 16, 71, 72, 73, 4096, (1 << 32) - 1]),
        length=st.sampled_from([0, 3, 4, 8, 16, 72, 100, 4096]),
        read_only=st.booleans(),
    )
    def bad_request(self, pick: int, cmd: int, size: int, length: int, read_only: bool) -> None:
        """Reserved fields set, names empty, descriptors and tokens that are none."""
        fds = [NOT_OPEN, *self.sessions, *self.retrieved, *self.files]
        fd = fds[pick % len(fds)] if self.device is None or pick % 3 else self.device
        body = struct.pack("<Ii", size, -1) + bytes([0, 0xEE, 0xEE, 0xEE, 0, 0, 0, 0x77])
        arg = body.ljust(4096, b"\0")[:length]
        try:
            self.task.ioctl(fd, cmd, arg if read_only else bytearray(arg))
        except KernelError:
            return
        raise AssertionError(f"request {cmd:#x} of {size} bytes succeeds")
