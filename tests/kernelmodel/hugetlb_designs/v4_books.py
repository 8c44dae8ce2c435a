"""The books of pools under LUO v4: the same rules, driven by its states and events.

What differs: a file is preserved at PRESERVE_FD or, where the design says so, at PREPARE; FINISH is
the system's, and so is the moment at which pages return that nobody claimed; an update needs
PREPARE, which needs the last one to be finished.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from kernelmodel.errors import KernelError
from kernelmodel.kernel import Kernel
from kernelmodel.luo_v4.client import LiveupdateClient
from kernelmodel.syscalls import Task
from kernelmodel.validate import validate_kernel
from tests.kernelmodel.hugetlb_designs.pool_books import INDEX, ORDER, Known, PoolBooks
from tests.kernelmodel.luo_v4.hosts import CANCEL, FINISH, PREPARE, UPDATED

__all__ = ["V4Books"]

_VM = 100


class V4Task(Task):
    """A process to which the ioctls of v4 look like those of 7.3."""

    client: LiveupdateClient

    def preserve_fd(self, session: int, fd: int, token: int) -> None:
        self.client.preserve_fd(session, fd, token)

    def retrieve_fd(self, session: int, token: int) -> int:
        return self.client.restore_fd(session, token)


class V4Agent:
    """As the agent of the other machine."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.task = V4Task(kernel, "agent")
        self.task.client = LiveupdateClient(self.task)

    def session(self, name: str) -> int:
        return self.task.client.create_session(name)

    def retrieve(self, name: str) -> int:
        return self.task.client.retrieve_session(name)


class V4Books(PoolBooks):
    """Subclass it with a release of v4."""

    def start(self, kernel: Kernel) -> None:
        super().start(kernel)
        self.agent.task.exit()
        self.agent = V4Agent(kernel)  # type: ignore[assignment]

    @property
    def client(self) -> LiveupdateClient:
        task = self.agent.task
        assert isinstance(task, V4Task)
        return task.client

    @property
    def early(self) -> bool:
        design = self.kernel.hugetlb_design
        assert design is not None
        return design.at_preserve_fd

    @property
    def takes_guests(self) -> bool:
        design = self.kernel.hugetlb_design
        assert design is not None
        return design.takes_guest_memfd

    def _frozen(self, file: Known) -> bool:
        """PRESERVE_FD alone does not, where files do their work at PREPARE."""
        return self.early and self._preserved(file)

    def _held(self, file: Known) -> bool:
        """A file that was retrieved may be preserved again; its session holds it all the same."""
        return self._preserved(file) or super()._held(file)

    @precondition(lambda self: self.outgoing and self._open())
    @rule(index=INDEX, which=INDEX)
    def preserve(self, index: int, which: int) -> None:
        file = self._open()[index % len(self._open())]
        session = self.outgoing[which % len(self.outgoing)]
        if self._preserved(file) and not self.early:
            return  # a second PRESERVE_FD is found out at PREPARE
        self.count += 1
        token = self.count
        expected = "EBUSY" if self._preserved(file) else ""
        room = len(file.missing) <= self.kernel.hugetlb.hstate(ORDER).available_huge_pages
        if file.guest and not self.takes_guests:
            expected = "ENOENT"
        elif self.early and not expected and not room and not file.guest:
            expected = "ENOSPC"
        if file.guest and not expected:
            self.client.preserve_fd(session.fd, file.vm, _VM + token)
        why = ""
        try:
            self.client.preserve_fd(session.fd, file.fd, token)
        except KernelError as error:
            why = error.name
        assert why == expected
        if not why:
            session.files[token] = file
        if self.early and why in {"", "ENOSPC"}:
            self._filled(file)

    def _filled(self, file: Known) -> None:
        """Holes were filled, as far as there were pages."""
        for at, _, nr in self._inode(file.fd).hugetlb.folios.runs():
            file.pages |= {page: file.pages.get(page, 0) for page in range(at, at + nr)}

    @precondition(lambda self: not (self.incoming or self.retrieved))
    @rule()
    def prepare_and_cancel(self) -> None:
        if self._prepare():
            validate_kernel(self.kernel, [self.agent.task])
            self.client.set_event(CANCEL)

    def _prepare(self) -> bool:
        """PREPARE; whether it went through: a pool may be too small to fill a hole."""
        if self.client.state() is UPDATED:
            self._finish_all()
        preserved = [file for session in self.outgoing for file in session.files.values()]
        holes = sum(len(file.missing) for file in preserved if not file.guest)
        room = holes <= self.kernel.hugetlb.hstate(ORDER).available_huge_pages
        why = ""
        try:
            self.client.set_event(PREPARE)
        except KernelError as error:
            why = error.name
        assert why == ("" if self.early or room else "ENOSPC")
        if not self.early:
            for file in preserved:
                self._filled_by_session(file)
        return not why

    def _filled_by_session(self, file: Known) -> None:
        """As `_filled`, for a file whose descriptor may be closed."""
        luo = self.kernel.luo_v4
        assert luo is not None
        for held in luo.held_files():
            hugetlb = getattr(held.inode, "hugetlb", None)
            if hugetlb is None or held.inode is not self._inode_of(file):
                continue
            for at, _, nr in hugetlb.folios.runs():
                file.pages |= {page: file.pages.get(page, 0) for page in range(at, at + nr)}

    def _inode_of(self, file: Known) -> object:
        return self.inodes[file.name]

    @property
    def inodes(self) -> dict[str, object]:
        """Inodes of files that were ever open, by name."""
        known = self.__dict__.setdefault("_inodes", {})
        for file in self._open():
            known[file.name] = self._inode(file.fd)
        assert isinstance(known, dict)
        return known

    @rule(index=INDEX)
    @precondition(lambda self: self._open())
    def close_file(self, index: int) -> None:
        assert self.inodes
        super().close_file(index)

    @precondition(lambda self: any(session.files for session in self.outgoing))
    @rule()
    def kexec(self) -> None:
        assert self.inodes
        if self._prepare():
            super().kexec()

    @precondition(lambda self: self.incoming and not self.outgoing)
    @rule()
    def kexec_with_nothing(self) -> None:
        """Nothing is preserved, and so nothing is stored."""
        if self._prepare():
            design = self.kernel.hugetlb_design
            assert design is not None
            assert design.shared_bytes == 0
            super().kexec()

    @precondition(lambda self: self.retrieved)
    @rule(which=INDEX, index=st.integers(0, 7))
    def retrieve(self, which: int, index: int) -> None:
        session = self.retrieved[which % len(self.retrieved)]
        waiting = [(t, f) for t, f in session.files.items() if f not in self.files]
        if not waiting:
            return
        token, file = waiting[index % len(waiting)]
        if file.guest:  # before its memory, which would bring it along
            file.vm = self.client.restore_fd(session.fd, _VM + token)
        file.fd = self.client.restore_fd(session.fd, token)
        self.files.append(file)

    @precondition(lambda self: self.incoming or self.retrieved)
    @rule()
    def finish_all(self) -> None:
        self._finish_all()

    def _finish_all(self) -> None:
        self.client.set_event(FINISH)
        for session in self.retrieved:
            self.agent.task.close(session.fd)
        self.incoming, self.retrieved = [], []
        self.files = [file for file in self.files if file.fd >= 0 or self._held(file)]

    def teardown(self) -> None:
        """FINISH first: without it pages of retrieved sessions stay unclaimed."""
        if hasattr(self, "agent") and self.client.state() is UPDATED:
            self._finish_all()
        super().teardown()

    @precondition(lambda _self: False)
    @rule(which=INDEX)
    def finish(self, which: int) -> None:
        """A session's own FINISH leaves pages unclaimed until the system's."""
