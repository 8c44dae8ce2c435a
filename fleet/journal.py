"""The durable record of a run: what was sent, what came back, what people asked for.

One SQLite file per run. A command is in it before it is sent, a result before the coordinator
hears of it, a request with the number of the step at which it was obeyed. Hosts are deterministic,
so this is all it takes to go on after the driver died: the coordinator is stepped from the
beginning, gets journaled results instead of fresh ones, and arrives where it was, on the same
digest.

The file is in WAL mode with `synchronous=NORMAL`: it survives the death of the process at any
point; the last moments may be missing after a power cut, and are then simply run again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import msgspec
from msgspec import Struct

from fleet.scenario import Scenario
from fleet.steps import Request
from fleet.unwritable import CannotWrite, writing
from kernelmodel.sim.cost import CostModel
from node.api import HostCall, UpdateCommand, UpdateResult

__all__ = ["Header", "Journal", "JournalError", "JournalUsed", "journal_header"]

#: Another one whenever the same run would come to another digest: what is half done has both then.
_FORMAT: Final = 2

_SCHEMA: Final = """
CREATE TABLE header (body BLOB NOT NULL);
CREATE TABLE deed (  -- an UpdateCommand, or without a seq a HostCall
    nr INTEGER PRIMARY KEY, host TEXT NOT NULL, seq INTEGER, body BLOB NOT NULL,
    UNIQUE (host, seq)
);
CREATE TABLE result (
    host TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (host, seq)
);
CREATE TABLE request (step INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""

_encode = msgspec.msgpack.encode


class JournalError(Exception):
    """There is no run to go on with, or it is not a run of this scenario."""


class JournalUsed(JournalError):
    """There is a journal already, and something in it that would be lost."""


class Header(Struct, frozen=True):
    """What must be the same for a run to go on from a journal."""

    scenario: str
    scenario_digest: str  # the seed is in it
    cost_digest: str
    records_events: bool  # results carry their events
    format: int = _FORMAT


def journal_header(scenario: Scenario, *, records_events: bool) -> Header:
    """What a journal of this scenario is recognised by."""
    return Header(
        scenario=scenario.name,
        scenario_digest=scenario.digest,
        cost_digest=CostModel.load(scenario.cost_profile).digest(),
        records_events=records_events,
    )


class Journal:
    """One run's journal, open for writing; a context manager. Made by `create` or `resume`.

    Whatever notes something raises `CannotWrite` if the file cannot be written.
    """

    def __init__(
        self, database: sqlite3.Connection, lock: BinaryIO | None, path: Path | None = None
    ) -> None:
        self._db = database
        self._lock = lock
        self._path = path or Path(":memory:")

    @classmethod
    def create(cls, path: Path | None, header: Header, *, keep: bool = False) -> Journal:
        """A journal for a new run; one that lies at `path` already is replaced.

        Without a path it is kept in memory and dies with the process.

        Raises:
            JournalError: another process is writing there.
            JournalUsed: with `keep`, if there is one in which something is noted.
            CannotWrite: it cannot be written there.
        """
        lock = None
        if path is not None:
            lock = _lock(path)
            if keep and _is_used(path):
                lock.close()
                raise JournalUsed(f"{path.parent}: holds what was done to a fleet already")
            with writing(path):
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
        with _sqlite_writing(path or Path(":memory:")):
            db = _connect(path)
            db.executescript(_SCHEMA)
            with db:
                db.execute("INSERT INTO header VALUES (?)", [_encode(header)])
        return cls(db, lock, path)

    @classmethod
    def resume(cls, path: Path, header: Header) -> Journal:
        """The journal of a run that was interrupted.

        Raises:
            JournalError: there is none, it is damaged, it belongs to another scenario, seed or cost
                profile, or another process is writing to it.
            CannotWrite: it cannot be written.
        """
        if not path.is_file():
            raise JournalError(f"{path}: there is no run to resume")
        if differs := _difference(_read_header(path), header):
            raise JournalError(f"{path}: belongs to another run, {differs}")
        lock = _lock(path)
        with _sqlite_writing(path):
            db = _connect(path)
            damage = _damage(db)
        if damage:
            db.close()
            lock.close()
            raise JournalError(f"{path}: is damaged ({damage}); choose another --out")
        return cls(db, lock, path)

    def sent(self, commands: Iterable[UpdateCommand]) -> None:
        """Note commands; to be called before they go out."""
        self._insert("deed", [(None, c.host, c.seq, _encode(c)) for c in commands])

    def called(self, call: HostCall) -> None:
        """Note a call of `HostService`; to be called before it is acknowledged."""
        self._insert("deed", [(None, call.host, None, _encode(call))])

    def answered(self, results: Iterable[UpdateResult]) -> None:
        """Note results; to be called before anyone acts on them."""
        self._insert("result", [(r.host, r.seq, _encode(r)) for r in results])

    def obeyed(self, step: int, request: Request) -> None:
        """Note a request that was obeyed as the coordinator's observation number `step`."""
        self._insert("request", [(step, _encode(request))])

    def results(self) -> dict[tuple[str, int], UpdateResult]:
        """Every journaled result by host and sequence number."""
        decode = msgspec.msgpack.Decoder(UpdateResult).decode
        rows = self._db.execute("SELECT body FROM result ORDER BY host, seq")
        results = (decode(body) for (body,) in rows)
        return {(result.host, result.seq): result for result in results}

    def history(self) -> list[UpdateCommand | HostCall]:
        """What was done to hosts, in the order in which it was; unanswered commands left out."""
        command = msgspec.msgpack.Decoder(UpdateCommand).decode
        call = msgspec.msgpack.Decoder(HostCall).decode
        rows = self._db.execute(
            "SELECT deed.seq, deed.body FROM deed LEFT JOIN result USING (host, seq)"
            " WHERE deed.seq IS NULL OR result.body IS NOT NULL ORDER BY nr"
        )
        return [call(body) if seq is None else command(body) for seq, body in rows]

    def requests(self) -> dict[int, Request]:
        """The requests by the step at which each was obeyed."""
        decode = msgspec.msgpack.Decoder(Request).decode
        rows = self._db.execute("SELECT step, body FROM request")
        return {step: decode(body) for step, body in rows}

    def calls(self) -> int:
        """How many calls of `HostService` there were."""
        (count,) = self._db.execute("SELECT count(*) FROM deed WHERE seq IS NULL").fetchone()
        return int(count)

    @property
    def has_rollout(self) -> bool:
        """Whether a rollout has sent a command."""
        return bool(self._db.execute("SELECT 1 FROM deed WHERE seq IS NOT NULL LIMIT 1").fetchone())

    def reached_ns(self) -> int:
        """A virtual instant that the fleet had reached, as late as the journal tells."""
        command = msgspec.msgpack.Decoder(UpdateCommand).decode
        call = msgspec.msgpack.Decoder(HostCall).decode
        rows = self._db.execute("SELECT seq, body FROM deed")
        return max(
            [
                *(call(b).at_ns if seq is None else command(b).start_ns for seq, b in rows),
                *(request.now_ns for request in self.requests().values()),
                0,
            ]
        )

    def close(self) -> None:
        """Close the file; further calls do nothing."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _insert(self, table: str, rows: list[tuple[object, ...]]) -> None:
        """Write rows in one transaction; what is noted again replaces itself."""
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            with _sqlite_writing(self._path), self._db:
                self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)  # noqa: S608 - our own table names


def _connect(path: Path | None) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:" if path is None else path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    return db


@contextlib.contextmanager
def _sqlite_writing(path: Path) -> Iterator[None]:
    """As `writing`, of a file that SQLite writes."""
    try:
        yield
    except sqlite3.OperationalError as error:
        number = errno.ENOSPC if "full" in str(error) else None
        raise CannotWrite(path, str(error), number) from error


def _damage(db: sqlite3.Connection) -> str:
    """What SQLite finds wrong with a file, "" if nothing."""
    try:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        raise  # it is busy, or the disk is
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if found == "ok" else str(found).replace("\n", " ")


def _is_used(path: Path) -> bool:
    """Whether there is a file with more in it than that a run was begun."""
    if not path.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            tables = ("deed", "result", "request")
            return any(db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in tables)  # noqa: S608 - our own table names
    except sqlite3.DatabaseError:
        return True  # whatever it is, it is not ours to replace


def _lock(path: Path) -> BinaryIO:
    """Keep other processes out for as long as the file that is returned stays open."""
    with writing(path):
        lock = path.with_name(path.name + "-lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        why = "another run is at work in this directory; choose another --out"
        raise JournalError(f"{path.parent}: {why}") from None
    return lock


def _difference(theirs: Header, ours: Header) -> str:
    """What keeps a run from going on with a journal, and what would be right; "" if nothing."""
    if theirs.format != ours.format:
        return "written by another version of lufleet; choose another --out"
    if theirs.scenario != ours.scenario:
        return f"of the scenario {theirs.scenario!r}; choose another --out"
    if theirs.scenario_digest != ours.scenario_digest:
        return (
            "of another seed, or the scenario has changed since: its file, its tables or --set; "
            "go on with those that it began with, or choose another --out"
        )
    if theirs.cost_digest != ours.cost_digest:
        return "with other costs; go on with those that it began with, or choose another --out"
    if theirs.records_events and not ours.records_events:
        return "with a trace; go on with --trace-out"
    if ours.records_events and not theirs.records_events:
        return "without a trace, and one from here on would not be whole; go on without --trace-out"
    return ""


def _read_header(path: Path) -> Header:
    db = sqlite3.connect(path)
    try:
        row = db.execute("SELECT body FROM header").fetchone()
        return msgspec.msgpack.decode(row[0] if row else b"", type=Header)
    except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
        raise JournalError(f"{path}: not the journal of a run ({error})") from None
    finally:
        db.close()
