"""The emulated machine's debugger: stops it at an address, reads and changes what is in it.

QEMU has a stub for gdb's remote protocol, which takes little: packets `$text#checksum`, each
acknowledged with `+`. QEMU connects to a socket of ours, so that nobody has to wait for it to be
there. Hardware breakpoints work in emulation, on every virtual address, in whatever program is
running. Registers are those of x86-64, by their number in gdb.

Happy path: `Debugger.listen`, start QEMU with `debugger.option`, `accept`, then `run` to one
breakpoint after the other until `run` says None: the machine is off.

Unhappy paths: a machine that stops nowhere in time is a `TimeoutError`; an answer that is none, a
`DebuggerError`. A step may end before its instruction was run (QEMU cuts it short when one of its
own timers wants the CPU: about one step in 500): it is taken again, for a machine that stands where
it stood would stop there a second time, at one call of a function.
"""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ["Debugger", "DebuggerError"]

_RAX: Final = 0
#: rdi, rsi, rdx, rcx.
_ARGUMENTS: Final = (5, 4, 3, 2)
_RSP: Final = 7
_RIP: Final = 16
_WORD: Final = 8
#: Bytes that one packet reads; the stub's buffer holds twice as many digits.
_PIECE: Final = 1024
#: How often a step is taken again that ended before its instruction was run.
_STEPS_MAX: Final = 100


class DebuggerError(Exception):
    """The stub said what makes no sense."""


class Debugger:
    """A connection to the stub, while the machine stands still unless in `run`."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        #: What QEMU is started with; the machine waits for the first `run` then.
        self.options: Final = ("-gdb", f"unix:{path},server=off", "-S")
        self._stub: socket.socket | None = None
        self._unread = b""
        self._breakpoints: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        if self._stub is not None:
            self._stub.close()

    def accept(self, timeout_s: float) -> None:
        """Wait for QEMU. Raises: TimeoutError."""
        self._listener.settimeout(timeout_s)
        self._stub, _ = self._listener.accept()
        # the stub gives single registers only to who has asked what registers there are
        self._ask("qXfer:features:read:target.xml:0,100")

    # Going and stopping.

    def break_at(self, address: int) -> None:
        """Stop there from now on, before the instruction."""
        if address not in self._breakpoints:
            self._expect(f"Z1,{address:x},1", "OK")
            self._breakpoints.add(address)

    def no_break_at(self, address: int) -> None:
        """Do not stop there any more."""
        if address in self._breakpoints:
            self._expect(f"z1,{address:x},1", "OK")
            self._breakpoints.remove(address)

    def run(self, timeout_s: float) -> int | None:
        """Go on to the next breakpoint; where that is, None if the machine went off.

        Raises:
            TimeoutError: it did neither in time.
            DebuggerError: it does not get away from where it stands.
        """
        try:
            at = self._register(_RIP)
            if at in self._breakpoints:  # it would stop there again at once
                self.no_break_at(at)
                self._step_off(at)
                self.break_at(at)
            self._ask("c", timeout_s)
            return self._register(_RIP)
        except ConnectionError:
            return None

    def _step_off(self, at: int) -> None:
        for _ in range(_STEPS_MAX):
            self._ask("s")
            if self._register(_RIP) != at:
                return
        raise DebuggerError(f"a step leads nowhere from {at:#x}")

    # Looking and changing.

    def arguments(self, count: int) -> list[int]:
        """At a function's first instruction: up to four of its arguments."""
        return [self._register(number) for number in _ARGUMENTS[:count]]

    def set_argument(self, index: int, value: int) -> None:
        """At a function's first instruction: one of its first four arguments is another."""
        self._set_register(_ARGUMENTS[index], value)

    def skip_function(self, result: int) -> None:
        """At a function's first instruction: return this number (of 64 bits) instead."""
        stack = self._register(_RSP)
        back = self.read(stack, _WORD)
        self._set_register(_RAX, result)
        self._set_register(_RIP, int.from_bytes(back, "little"))
        self._set_register(_RSP, stack + _WORD)

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a virtual address. Raises: DebuggerError: nothing is mapped there."""
        found = b""
        while len(found) < size:
            take = min(_PIECE, size - len(found))
            answer = self._ask(f"m{address + len(found):x},{take:x}")
            try:
                found += bytes.fromhex(answer)
            except ValueError:
                raise DebuggerError(f"cannot read at {address:#x}: {answer}") from None
        return found

    def read_text(self, address: int, most: int = 256) -> str:
        """A string that ends with NUL within so many bytes of a virtual address."""
        text = b""
        while b"\0" not in text and len(text) < most:
            text += self.read(address + len(text), 16)
        return text.partition(b"\0")[0].decode("ascii", "replace")

    def _register(self, number: int) -> int:
        return int.from_bytes(bytes.fromhex(self._ask(f"p{number:x}")), "little")

    def _set_register(self, number: int, value: int) -> None:
        word = (value & (1 << 64) - 1).to_bytes(_WORD, "little")
        self._expect(f"P{number:x}={word.hex()}", "OK")

    # Packets.

    def _expect(self, request: str, wanted: str) -> None:
        answer = self._ask(request)
        if answer != wanted:
            raise DebuggerError(f"{request}: QEMU answers {answer!r}")

    def _ask(self, request: str, timeout_s: float = 60) -> str:
        assert self._stub is not None, "accepted before"
        self._stub.settimeout(timeout_s)
        data = request.encode()
        self._stub.sendall(b"$%b#%02x" % (data, sum(data) & 0xFF))
        while True:
            before, dollar, rest = self._unread.partition(b"$")
            body, hash_, checksum = rest.partition(b"#")
            if dollar and hash_ and len(checksum) >= 2:
                self._unread = checksum[2:]
                self._stub.sendall(b"+")
                if body[:1] == b"W":  # the machine went off
                    raise ConnectionResetError
                return body.decode("ascii")
            if b"-" in before:
                raise DebuggerError(f"{request}: QEMU did not understand")
            more = self._stub.recv(1 << 16)
            if not more:
                raise ConnectionResetError
            self._unread += more
