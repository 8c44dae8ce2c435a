"""What the test knows by itself: files as plain bytes, sessions as dictionaries, errnos by rule."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from hypothesis import strategies as st

from kernelmodel.memory import MIB, PAGE_SIZE

HUGE = 2 * MIB
SIZES = st.sampled_from([0, 1, 100, PAGE_SIZE, PAGE_SIZE + 1, 5 * PAGE_SIZE])
OFFSETS = st.sampled_from([0, 7, PAGE_SIZE - 1, PAGE_SIZE, 3 * PAGE_SIZE])
TOKENS = st.sampled_from([0, 1, 2, (1 << 64) - 1])
NAMES = st.sampled_from(["a", "b", "c"])
SEALS = st.sampled_from([1, 2, 4, 8, 16, 32, 64])
PICK = st.integers(0, 50)

F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE, F_SEAL_EXEC = (
    1 << bit for bit in range(6)
)
#: What sealing the mode of an executable file seals besides.
CONTENT_SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE


@dataclass
class Plain:
    """A memfd as the test knows it. `frozen` while an outgoing session holds it."""

    content: bytearray = field(default_factory=bytearray)
    seals: int = 0
    position: int = 0
    executable: bool = True
    frozen: bool = False
    #: A live update holds it, outgoing or not finished yet.
    held: bool = False

    @property
    def no_writing(self) -> bool:
        """Whether a seal refuses every write."""
        return bool(self.seals & (F_SEAL_WRITE | F_SEAL_FUTURE))

    def refuses_growing(self, end: int) -> bool:
        """Whether nothing may reach to `end`."""
        return end > len(self.content) and (self.frozen or bool(self.seals & F_SEAL_GROW))

    def why_no_write(self, offset: int, size: int) -> str:
        """The errno of a pwrite, or ""."""
        refused = self.no_writing or self.refuses_growing(offset + size)
        return "EPERM" if size and refused else ""

    def why_no_truncate(self, size: int) -> str:
        """The errno of an ftruncate, or ""."""
        if size == len(self.content):
            return ""
        seal = F_SEAL_SHRINK if size < len(self.content) else F_SEAL_GROW
        return "EPERM" if self.frozen or self.seals & seal else ""

    def why_no_fallocate(self, mode: int, offset: int, size: int) -> str:
        """The errno of a fallocate, or ""."""
        if not size:
            return "EINVAL"
        if mode == 2:  # a hole that changes the size
            return "EOPNOTSUPP"
        if self.frozen:
            return "EPERM"
        if mode == 3:
            return "EPERM" if self.no_writing else ""
        return "EPERM" if self.refuses_growing(offset + size) else ""

    def why_no_seal(self, seals: int) -> str:
        """The errno of a F_ADD_SEALS, or ""."""
        if seals > F_SEAL_EXEC:
            return "EINVAL"
        if self.seals & F_SEAL_SEAL:
            return "EPERM"
        writes = seals & F_SEAL_WRITE or (seals & F_SEAL_EXEC and self.executable)
        pinned = self.frozen and self.content
        return "EBUSY" if writes and pinned and not self.seals & F_SEAL_WRITE else ""

    def write(self, offset: int, data: bytes) -> None:
        """What a pwrite does."""
        if data:
            self.resize(max(len(self.content), offset + len(data)))
            self.content[offset : offset + len(data)] = data

    def resize(self, size: int) -> None:
        """What an ftruncate does."""
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))


@dataclass
class Huge:
    """A memfd on huge pages: the version of the content that each page holds, 0 for zeroes."""

    pages: list[int] = field(default_factory=list)
    position: int = 0
    frozen: bool = False
    held: bool = False


File = Plain | Huge


@dataclass
class Session:
    """A session and its files by token; `seals` as they were when each was preserved."""

    name: str
    files: dict[int, File] = field(default_factory=dict)
    seals: dict[int, int] = field(default_factory=dict)
    #: Files that a retrieve gave, and tokens of those whose retrieve failed for good.
    fetched: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)

    def hold(self, token: int, file: File) -> None:
        """A file is preserved."""
        self.files[token] = file
        self.seals[token] = file.seals if isinstance(file, Plain) else 0
        file.frozen = file.held = True

    def let_go(self) -> None:
        """All files are free again: unpreserved, or finished."""
        for token, file in self.files.items():
            if not self.fetched or token in self.fetched:
                file.frozen = file.held = False
        self.files.clear()

    def handed_over(self) -> Session:
        """As the next kernel finds it."""
        other = copy.deepcopy(self)
        for token, file in other.files.items():
            file.frozen = False
            if isinstance(file, Plain):
                file.seals = other.seals[token]
                file.executable = True
                if file.seals & F_SEAL_EXEC:  # comes back executable, and is sealed as such
                    file.seals |= CONTENT_SEALS
        return other
