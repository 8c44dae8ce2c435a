"""Random scripts of the plain kind that most recordings are: every operation about equally likely.

Little is done to make an operation succeed. Files are preserved in whatever session there is,
names clash, descriptors are missing; after a kexec all sessions are retrieved and most of their
files fetched, some twice. Numbers are drawn from the recordings' own, and some from beyond.

Happy path: `plain_script(random)` gives the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, TypeVar

__all__ = ["plain_script"]

_NAMES: Final = ("vm-0", "vm-1", "vm-2", "luod", "@max", "@empty", "@full")
_REFUSED: Final = ("@empty", "@full")
_SIZES: Final = (0, 100, 4096, 5000, 8192, 65536, 262144)
_TOKENS: Final = (*range(13), 1 << 63)
_REQUESTS: Final = (
    *range(0xBA00, 0xBA06), *range(0xBA3F, 0xBA46), 0xBB00, 0x4008BA00, 0x4008BA40,
)  # fmt: skip
_RAW_SIZES: Final = (0, 4, 7, 8, 16, 24, 72, 80, 4096)
_POKES: Final = ((), (), (20, 1), (100, 1), (200, 9))
#: Machines that some scripts ask for: scratch of other sizes, no KHO, no live update.
_MACHINES: Final = (
    "memory=1G liveupdate=on kho_scratch=32M,128M,32M",
    "memory=3G liveupdate=on kho_scratch=64M,128M,16M",
    "memory=4G liveupdate=on kho_scratch=32M,128M,32M",
    "memory=2G liveupdate=on kho_scratch=32M,64M,32M",
    "memory=2G liveupdate=on kho_scratch=500%",
    "memory=2G liveupdate=off kho_scratch=32M,128M,32M",
    "memory=2G kho_scratch=32M,128M,32M",
    "memory=2G kho=off liveupdate=on",
)
#: Files that are looked at last in each boot.
_STATS: Final = 6
_WEIGHTS: Final = {
    "create": 10, "memfd": 18, "preserve": 26, "fill": 6, "seek": 5, "close": 4, "truncate": 4,
    "fallocate": 3, "seal": 4, "dup": 2, "finish": 4, "name": 2, "raw": 3, "null": 1, "fetch": 4,
    "retrieve": 3, "stat": 2, "tmpfile": 1, "same": 1,
}  # fmt: skip

_T = TypeVar("_T")


def plain_script(random: Random) -> str:
    """One script."""
    return _Writer(random).write()


class _Writer:
    """Writes one script."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.lines: list[str] = []
        self.count = 0
        self.boot = 0
        #: Variables of this boot, whether or not they hold something.
        self.files: list[str] = []
        self.sessions: list[str] = []
        #: (name, tokens) of what was created in this boot.
        self.made: dict[str, tuple[str, list[int]]] = {}

    def pick(self, choices: Sequence[_T]) -> _T:
        return self.random.choice(choices)

    def odds(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    def add(self, *words: object) -> None:
        self.lines.append(" ".join(map(str, words)))

    def write(self) -> str:
        if self.odds(15):
            self.add("#! plain", self.pick(_MACHINES))
        for boot in range(1, self.pick((2, 2, 2, 3, 3, 4)) + 1):
            self.boot = boot
            if boot > 1:
                self.add("kexec")
            made, self.made, self.files, self.sessions = self.made, {}, [], []
            self.add("open", "d")
            if self.odds(30):
                self.add("open", "d2")
            if boot > 1:
                self.revive(list(made.values()))
            for _ in range(self.pick((10, 20, 30, 40, 60))):
                op = self.random.choices(tuple(_WEIGHTS), tuple(_WEIGHTS.values()))[0]
                getattr(self, f"op_{op}")()
            for file in self.files[: _STATS + self.random.randrange(4)]:
                self.add("stat", file)
        return "\n".join(self.lines) + "\n"

    def revive(self, crossed: list[tuple[str, list[int]]]) -> None:
        """Retrieve everything and a bit more."""
        if not crossed or self.odds(25):
            crossed = [*crossed, ("nope", [])]
        held: list[tuple[str, list[int]]] = []
        for index, (name, tokens) in enumerate(crossed):
            session = f"i{index}_{self.boot}"
            self.add("retrieve", "d", session, name)
            held.append((session, tokens))
            if self.odds(20):
                self.add("retrieve", "d", "x", name)
        for session, tokens in held:
            for token in self.random.sample(tokens, len(tokens)):
                if self.odds(15):
                    continue
                file = f"g{token}_{len(self.files)}"
                self.add("fetch", session, file, token)
                self.add("stat", file)
                self.files.append(file)
                if self.odds(15):
                    self.add("fetch", session, "again", token)
            if self.odds(30):
                self.add("fetch", session, "none", self.random.randrange(900, 999))
        self.sessions = [session for session, _ in held]

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}_{self.boot}"

    def file(self) -> str:
        if not self.files:
            return "missing"
        return self.pick(self.files[-5:] if self.odds(70) else self.files)

    def session(self) -> str:
        return self.pick(self.sessions or ("missing",))

    def op_create(self) -> None:
        name = self.pick(_NAMES)
        # a name of a session that is there is refused, but its variable is used like any other
        session = self.fresh("s") if self.odds(85) else self.pick([*self.made, "s0"])
        self.add("create", "d", session, name)
        taken = name in {other for other, _ in self.made.values()}
        if not (taken or name in _REFUSED) or self.odds(30):
            self.sessions.append(session)
        self.made[session] = (name, [])

    def op_memfd(self) -> None:
        file, size = self.fresh("m"), self.pick(_SIZES)
        self.add("memfd", file, size, *(["s"] if self.odds(45) else []))
        self.files.append(file)
        if size and self.odds(60):
            length = self.pick((min(size, 64), min(size, 96), min(size, 4096), size))
            self.add("fill", file, 0, length, self.random.randrange(100))

    def op_preserve(self) -> None:
        session, token = self.session(), self.pick(_TOKENS)
        self.add("preserve", session, self.file(), token)
        if session in self.made:
            self.made[session][1].append(token)

    def op_fill(self) -> None:
        where = self.pick((0, 0, 64, 4096)), self.pick((8, 64, 96, 4096))
        self.add("fill", self.file(), *where, self.random.randrange(100))

    def op_seek(self) -> None:
        self.add("seek", self.file(), self.pick((0, 1, 100, 5000)))

    def op_close(self) -> None:
        if self.odds(6):
            if self.odds(30):
                self.add("dup", "d", "d2")  # which holds the device after the other is closed
            self.add("close", "d")
            self.add("open", "d")
            return
        if self.odds(60):
            self.add("close", file := self.file())
            if file in self.files and self.odds(80):
                self.files.remove(file)
        else:
            self.add("close", session := self.session())
            self.made.pop(session, None)

    def op_truncate(self) -> None:
        self.add("truncate", self.file(), self.pick((0, 4096, 8192, 32768, 65536, 300000)))

    def op_fallocate(self) -> None:
        what = self.pick((0, 1, 3)), self.pick((0, 4096, 16384)), self.pick((4096, 16384))
        self.add("fallocate", self.file(), *what)

    def op_seal(self) -> None:
        self.add("seal", self.file(), self.pick((1, 2, 4, 8, 16, 32)))

    def op_dup(self) -> None:
        copy = self.fresh("d")
        self.add("dup", self.file(), copy)
        self.files.append(copy)

    def op_finish(self) -> None:
        self.add("finish", self.session(), *([1] if self.odds(15) else []))

    def op_name(self) -> None:
        self.add("name", self.session())

    def op_raw(self) -> None:
        on = self.pick(("d", self.session(), self.session()))
        self.add("raw", on, hex(self.pick(_REQUESTS)), self.pick(_RAW_SIZES), *self.pick(_POKES))

    def op_null(self) -> None:
        self.add("null", "n")
        self.files.append("n")

    def op_tmpfile(self) -> None:
        self.files.append(self.fresh("t"))
        self.add("tmpfile", self.files[-1])

    def op_same(self) -> None:
        self.add("same", self.file(), self.file())

    def op_fetch(self) -> None:
        file = self.fresh("h")
        self.add("fetch", self.session(), file, self.pick((*_TOKENS, 99)))
        if self.odds(20):
            self.files.append(file)

    def op_retrieve(self) -> None:
        self.add("retrieve", "d", "y", self.pick(_NAMES))

    def op_stat(self) -> None:
        self.add("stat", self.file())
