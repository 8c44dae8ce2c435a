"""Take the memory of a QEMU guest at the moment at which its kernel jumps into the next one.

    qemu-system-x86_64 … -serial file:console -qmp unix:qmp,server=on,wait=off
    python qemu_image.py qmp console 4G ram
    lufleet inspect ram --save handover.kho.gz

The old kernel says so on its console just before it jumps (with `loglevel=7`); the next one then
unpacks itself, which takes a while, and has touched nothing that was handed over. The guest is
stopped there, its memory written to a file whose offsets are physical addresses, and QEMU ended.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

_WORDS = b"Starting new kernel"
_PATIENCE_SECONDS = 600
_UNITS = {"M": 1 << 20, "G": 1 << 30}


def execute(connection: TextIO, command: str, **arguments: object) -> None:
    """Have QEMU do something; its events are passed over."""
    connection.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    connection.flush()
    for line in connection:
        answer = json.loads(line)
        if "error" in answer:
            sys.exit(f"{command}: {answer['error']['desc']}")
        if "return" in answer:
            return


def wait_for(console: Path) -> None:
    """Until the old kernel says its last words."""
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while not (console.exists() and _WORDS in console.read_bytes()):
        if time.monotonic() > give_up:
            sys.exit(f"{console}: no kernel has said {_WORDS.decode()!r}")
        time.sleep(0.005)


def main(qmp: str, console: str, size: str, out: str) -> None:
    """Wait, stop, write, quit."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.connect(qmp)
        connection = monitor.makefile("rw")
        connection.readline()  # the greeting
        execute(connection, "qmp_capabilities")
        wait_for(Path(console))
        execute(connection, "stop")
        memory = int(size[:-1]) * _UNITS[size[-1]]
        execute(connection, "pmemsave", val=0, size=memory, filename=str(Path(out).resolve()))
        execute(connection, "quit")


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[3][-1] not in _UNITS:
        sys.exit("usage: qemu_image.py QMP-SOCKET CONSOLE-FILE SIZE(M|G) OUT")
    main(*sys.argv[1:])
