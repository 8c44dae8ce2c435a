"""Random scripts of live-update operations, from a seed: questions for model and kernel alike.

Most operations are made to succeed: the writer keeps in mind which sessions and files there should
be, and what a session holds. The rest are the corners: limits of sessions and of pages, sizes that
are no multiple of a page, every seal, odd modes of fallocate, doubled descriptors, raw requests.
A script has a theme, which makes some of that frequent. Every other script is a plain one, in which
no more care is taken than in the recordings.

Happy path: `random_script(seed, index)` gives the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, TypeVar

from fleet.recorder.plain_scripts import plain_script
from kernelmodel.sim.rng import stream

__all__ = ["THEMES", "random_script"]

NAMES: Final = ("vm-0", "vm-1", "vm-2", "luod", "@max")
ODD_NAMES: Final = ("@empty", "@full", "nope", "vm", "vm-00")
SIZES: Final = (0, 100, 4096, 5000, 8192, 65536, 262144)
ODD_SIZES: Final = (1, 4095, 4097, 12289, 300000, 511 * 4096, 511 * 4096 - 1, 512 * 4096, 2097153)
SEEDS: Final = 99
OFFSETS: Final = (0, 0, 0, 64, 100, 4090, 4096, 8192)
LENGTHS: Final = (1, 8, 64, 100, 4096, 4097)
SEALS: Final = (1, 2, 4, 8, 16, 32, 2 | 4, 6 | 8, 2 | 4 | 8 | 16, 31, 0, 64, 33)
POSITIONS: Final = (0, 1, 100, 5000, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TOKENS: Final = (*range(13), 1 << 63, (1 << 64) - 1)
FALLOCATE_MODES: Final = (0, 0, 0, 1, 1, 3, 3, 3, 2, 8, 16, 17, 64)
REQUESTS: Final = (
    *range(0xBA00, 0xBA03), 0xBA05, *range(0xBA3E, 0xBA46), 0x4008BA00, 0xC010BA40, 0x1234,
)  # fmt: skip
WELL_FORMED: Final = (
    (0xBA00, 72), (0xBA01, 72), (0xBA40, 16), (0xBA41, 16), (0xBA42, 8), (0xBA43, 72),
)  # fmt: skip
RAW_SIZES: Final = (0, 4, 7, 8, 12, 15, 16, 17, 71, 72, 73, 80, 200, 4096)
RAW_OFFSETS: Final = (4, 5, 7, 8, 12, 15, 16, 20, 71, 72, 76, 79, 100, 200, 4095)
#: How often a memfd is made with MFD_NOEXEC_SEAL or MFD_EXEC, and a tmpfs file without a link.
RARE_MEMFDS: Final = 0.08
UNLINKED: Final = 0.6
#: How often a raw request has less memory than it could read, and how much then.
FAULTS: Final = 0.3
RAW_ROOMS: Final = (0, 3, 4, 8, 15, 16, 71, 72, 80)
STATS: Final = 8

#: Weight of each operation by theme; what a theme leaves out has the weight of "plain".
THEMES: Final = {
    "plain": {
        "create": 10, "memfd": 14, "fill": 12, "preserve": 22, "stat": 5, "truncate": 4,
        "fallocate": 4, "seal": 4, "seek": 5, "dup": 2, "close": 5, "finish": 5, "name": 2,
        "raw": 2, "fetch": 5, "retrieve": 3, "null": 1, "tmpfile": 1, "same": 1, "open": 1,
    },
    "seals": {"seal": 18, "truncate": 10, "fallocate": 10, "fill": 18, "stat": 10},
    "sizes": {"truncate": 14, "fallocate": 14, "fill": 18, "memfd": 20},
    "raw": {"raw": 40},
    "chain": {"preserve": 30, "finish": 2},
    "sessions": {"close": 2},
    "files": {"preserve": 40, "memfd": 25},
}  # fmt: skip

T = TypeVar("T")


def random_script(seed: int, index: int) -> str:
    """Script `index` of a seed; the same text for ever, on every machine."""
    random = stream(seed, "script", index)
    if index % 2:
        return plain_script(random)
    return _with_odd_ones(_Writer(random).write(), stream(seed, "memory of requests", index))


def _with_odd_ones(text: str, random: Random) -> str:
    """Some raw requests end before they are read, or cannot be written to; files of rare kinds."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        op, *words = line.split()
        if op == "raw" and random.random() < FAULTS:
            room, read_only = random.choice((*RAW_ROOMS, int(words[2]) % 4096)), random.choice("-r")
            words.insert(1, f"{room}{read_only.strip('-')}")
            lines[at] = " ".join(("rawin", *words))
        elif op == "memfd" and random.random() < RARE_MEMFDS:
            lines[at] = f"{line}{'' if words[2:] else ' '}{random.choice('nnx')}"
        elif op == "tmpfile" and random.random() < UNLINKED:
            lines[at] = f"{line} u"
    return "\n".join(lines) + "\n"


class _Writer:
    """Writes one script."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.theme = self.pick(("plain", *THEMES))
        self.weights = THEMES["plain"] | THEMES[self.theme]
        self.lines: list[str] = []
        self.count = 0
        self.boot = 0
        #: Variables that should hold something, in this boot.
        self.files: list[str] = []
        self.sessions: list[str] = []
        self.incoming: dict[str, list[int]] = {}
        #: Tokens by session, and sessions by name, as they should cross the next kexec.
        self.tokens: dict[str, list[int]] = {}
        self.names: dict[str, str] = {}

    def pick(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)

    def odds(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    def add(self, *words: object) -> None:
        self.lines.append(" ".join(map(str, words)))

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}_{self.boot}"

    def write(self) -> str:
        boots = self.pick((2, 2, 2, 3)) if self.theme != "chain" else self.pick((3, 4, 5))
        for boot in range(1, boots + 1):
            self.boot = boot
            if boot > 1:
                self.add("kexec")
            self.run_boot()
        return "\n".join(self.lines) + "\n"

    def run_boot(self) -> None:
        crossed = [(name, self.tokens.get(s, [])) for s, name in self.names.items()]
        self.files, self.sessions, self.incoming = [], [], {}
        self.tokens, self.names = {}, {}
        self.add("open", "d")
        if crossed or self.odds(70):
            self.revive(crossed)
        if self.boot == 1 and self.theme == "sessions":
            self.many_sessions()
        if self.theme == "files":
            self.many_files()
        for _ in range(self.random.randrange(5, 60 if self.theme != "chain" else 30)):
            ops = tuple(self.weights)
            op = self.random.choices(ops, tuple(self.weights.values()))[0]
            getattr(self, f"op_{op}")()
        for variable in self.files[-STATS:]:
            self.add("stat", variable)

    def revive(self, crossed: list[tuple[str, list[int]]]) -> None:
        """Retrieve most of what should have crossed."""
        for name, tokens in crossed:
            if self.odds(12):
                continue
            session = self.fresh("i")
            self.add("retrieve", "d", session, name)
            self.incoming[session] = list(tokens)
            if self.odds(10):
                self.add("retrieve", "d", "x", name)
        for session, tokens in self.incoming.items():
            for token in tokens:
                if self.odds(85):
                    self.op_fetch(session, token)
                    if self.odds(80):
                        self.add("stat", self.files[-1])
            if self.odds(20):
                self.add("fetch", session, "none", 900 + self.random.randrange(99))

    def many_sessions(self) -> None:
        """A whole block of sessions, or almost, or a bit more."""
        for number in range(self.pick((50, 51, 52, 53, 102, 103))):
            session = self.fresh("s")
            name = f"many-{number}"
            self.add("create", "d", session, name)
            self.sessions.append(session)
            self.names[session] = name
            if self.odds(5):
                self.op_create()
            if self.odds(3):
                self.op_close()

    def many_files(self) -> None:
        """A block of files in one session, or almost, or a bit more."""
        session = self.fresh("s")
        self.add("create", "d", session, "many")
        self.sessions.append(session)
        self.names[session] = "many"
        for number in range(self.pick((62, 63, 64, 126, 127))):
            file = self.fresh("m")
            self.add("memfd", file, self.pick((0, 100, 4096)))
            self.add("preserve", session, file, 100 + number)
            self.tokens.setdefault(session, []).append(100 + number)
            if self.odds(90):
                self.add("close", file)
            else:
                self.files.append(file)

    # Operations. Each writes one line or a few.

    def file(self) -> str:
        if not self.files or self.odds(2):
            return "missing"
        return self.pick(self.files[-4:] if self.odds(60) else self.files)

    def session(self, *, incoming: int = 5) -> str:
        sessions = list(self.incoming) if self.odds(incoming) else self.sessions
        if not sessions or self.odds(1):
            return self.pick(("missing", "d"))
        return self.pick(sessions[-3:] if self.odds(60) else sessions)

    def op_open(self) -> None:
        self.add("open", self.pick(("d2", "d3")))

    def op_null(self) -> None:
        self.files.append(self.fresh("n"))
        self.add("null", self.files[-1])

    def op_tmpfile(self) -> None:
        self.files.append(self.fresh("t"))
        self.add("tmpfile", self.files[-1])

    def op_create(self) -> None:
        session = self.fresh("s")
        if self.odds(15):
            self.add("create", "d", session, self.pick((*NAMES, *ODD_NAMES)))
            return
        free = [
            name
            for name in (*NAMES, *(f"n-{k}" for k in range(9)))
            if name not in self.names.values()
        ]
        name = self.pick(free or NAMES)
        self.add("create", "d", session, name)
        self.sessions.append(session)
        self.names[session] = name

    def op_retrieve(self) -> None:
        self.add("retrieve", "d", "y", self.pick((*NAMES, *ODD_NAMES)))

    def op_memfd(self) -> None:
        file = self.fresh("m")
        size = self.pick(ODD_SIZES if self.odds(30 if self.theme == "sizes" else 8) else SIZES)
        if self.odds(1):
            self.add("memfd", file, self.pick((2097152, 4096)), "h")
        else:
            self.add("memfd", file, size, *(["s"] if self.odds(50) else []))
        self.files.append(file)
        if size and self.odds(60):
            length = self.pick((min(size, 64), min(size, 4096), size))
            self.add("fill", file, 0, length, self.random.randrange(SEEDS))

    def op_fill(self) -> None:
        offset = self.pick(OFFSETS) if self.odds(95) else self.pick((1 << 63, 2097152))
        length = self.pick(LENGTHS)
        self.add("fill", self.file(), offset, length, self.random.randrange(SEEDS))

    def op_preserve(self) -> None:
        session, file = self.session(), self.file()
        token = self.pick(TOKENS)
        if session in self.names and file != "missing" and not file.startswith("n"):
            taken = self.tokens.setdefault(session, [])
            if token in taken and self.odds(80):
                token = self.random.randrange(1000)
            taken.append(token)
        self.add("preserve", session, file, token)

    def op_fetch(self, session: str = "", token: int | None = None) -> None:
        if token is None:
            session = self.session(incoming=80)
            token = self.pick([*self.incoming.get(session, []), self.pick(TOKENS)])
        file = self.fresh("g")
        self.add("fetch", session, file, token)
        self.files.append(file)

    def op_stat(self) -> None:
        self.add("stat", self.file() if self.odds(97) else self.pick(("d", self.session())))

    def op_truncate(self) -> None:
        size = self.pick((*SIZES, *ODD_SIZES)) if self.odds(98) else 1 << 63
        self.add("truncate", self.file(), size)

    def op_fallocate(self) -> None:
        offset = self.pick((0, 0, 64, 4096, 8192, 100000))
        length = self.pick((0, 1, 4096, 4096, 8192, 16384, 262144))
        self.add("fallocate", self.file(), self.pick(FALLOCATE_MODES), offset, length)

    def op_seal(self) -> None:
        self.add("seal", self.file(), self.pick(SEALS))

    def op_seek(self) -> None:
        self.add("seek", self.file(), self.pick(POSITIONS[:4] if self.odds(85) else POSITIONS))

    def op_dup(self) -> None:
        source = self.file() if self.odds(90) else self.session()
        copy = self.fresh("u")
        self.add("dup", source, copy)
        (self.sessions if source in self.sessions else self.files).append(copy)

    def op_close(self) -> None:
        if self.odds(65) and self.files:
            file = self.file()
            self.add("close", file)
            if file in self.files and self.odds(90):
                self.files.remove(file)
            return
        session = self.session(incoming=20)
        if session == "d":
            return
        self.add("close", session)
        self.forget(session)

    def forget(self, session: str) -> None:
        """What a session held will not cross."""
        self.names.pop(session, None)
        self.incoming.pop(session, None)
        if session in self.sessions:
            self.sessions.remove(session)

    def op_finish(self) -> None:
        session = self.session(incoming=85)
        self.add("finish", session, *([1] if self.odds(10) else []))

    def op_name(self) -> None:
        self.add("name", self.session(incoming=30))

    def op_same(self) -> None:
        self.add("same", self.file(), self.file())

    def op_raw(self) -> None:
        on = self.pick(("d", self.session(), self.session(incoming=100), self.file()))
        pokes: list[int] = []
        for _ in range(self.pick((0, 0, 0, 1, 1, 2))):
            pokes += [self.pick(RAW_OFFSETS), self.random.randrange(256)]
        request, size = self.pick(REQUESTS), self.pick(RAW_SIZES)
        if self.odds(50):
            request, size = self.pick(WELL_FORMED)
            more = self.pick((0, 0, 0, 4, 8))
            if more and self.odds(30):
                pokes += [size + more - 1, 1]
            size += more
        self.add("raw", on, hex(request), size, *pokes)
